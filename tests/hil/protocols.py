"""What these tests ask of a target beyond labgrid's own protocols, and the driver for a board on a network."""

import abc

import attr
from labgrid.driver import Driver
from labgrid.factory import target_factory
from labgrid.resource import Resource


class ApplianceProtocol(abc.ABC):
    """An appliance that answers over HTTP."""

    @abc.abstractmethod
    def get_url(self):
        """`http://HOST:PORT` of its endpoint."""
        raise NotImplementedError

    @abc.abstractmethod
    def get_board(self):
        """The folder of board/ that it is."""
        raise NotImplementedError

    def get_parts(self):
        """The folder with what a system of its image consists of; None where that is not known."""
        return None

    def restarted(self):
        """Told when the board has started again."""


class MachineProtocol(abc.ABC):
    """What can be done to a machine that is simulated, or sits in a rig with more than a power switch."""

    @abc.abstractmethod
    def watchdog_resets(self):
        """How often the hardware watchdog has reset it, seen from outside."""
        raise NotImplementedError

    @abc.abstractmethod
    def network(self, plugged):
        """Plugs the network cable in, or pulls it."""
        raise NotImplementedError

    @abc.abstractmethod
    def throttle_writes(self, bytes_per_second):
        """Makes the medium slow; 0 ends that."""
        raise NotImplementedError


@target_factory.reg_resource
@attr.s(eq=False)
class ApplianceAddress(Resource):
    """Where an appliance is on the network.

    Args:
        host (str): its name or address
        board (str): the folder of board/ that it is
        port (int): of its HTTP endpoint
    """

    host = attr.ib(validator=attr.validators.instance_of(str))
    board = attr.ib(validator=attr.validators.instance_of(str))
    port = attr.ib(default=9000, validator=attr.validators.instance_of(int))


@target_factory.reg_driver
@attr.s(eq=False)
class ApplianceDriver(Driver, ApplianceProtocol):
    """A real board at an address."""

    bindings = {"address": ApplianceAddress}

    def get_url(self):
        """Where its HTTP endpoint is."""
        return f"http://{self.address.host}:{self.address.port}"

    def get_board(self):
        """Which board it is."""
        return self.address.board
