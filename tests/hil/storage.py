"""The card of a rig, written by our own flasher."""

import subprocess

import attr
from appliance import images
from labgrid.driver import Driver, USBStorageDriver
from labgrid.factory import target_factory
from labgrid.step import step


@target_factory.reg_driver
@attr.s(eq=False)
class InferctlStorageDriver(USBStorageDriver):
    """A card in a multiplexer of this machine, written by `inferctl flash`: it refuses this machine's own disks and images for another
    board, finds counterfeits, writes only what the block map has, and reads back.

    Args:
        board (str): the folder of board/ that the image must be for
    """

    # Of what labgrid's own driver takes what is plugged in here: the path of a card on another machine would be a disk of this one.
    bindings = {"storage": {"USBMassStorage", "USBSDMuxDevice", "USBSDWireDevice", "USBSDWire3Device"}}

    board = attr.ib(default="", validator=attr.validators.instance_of(str))

    @Driver.check_active
    @step(args=["filename", "provision"])
    def write_image(self, filename=None, provision=None, **_):
        """Writes an image to the card, and a configuration onto its boot partition."""
        self._wait_for_medium(None)
        command = [images.inferctl(), "flash", filename, self._get_devpath(None), "--yes"]
        command += ["--board", self.board] if self.board else []
        command += ["--provision", provision] if provision else []
        subprocess.run(command, check=True)
