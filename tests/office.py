"""Keys and a root document, as a maker of systems has them."""

import subprocess


class Office:
    """A folder with the keys of three roles, and the root document that an image is born with."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        folder.mkdir()
        for name in ("root", "models", "system"):
            self.run("keygen", self.at(f"{name}.key"))
        self.root = self.at("root.imr")
        grants = [f"root=1:{self.at('root.pub')}", f"model-release=1:{self.at('models.pub')}", f"system-release=1:{self.at('system.pub')}"]
        roles = [part for grant in grants for part in ("--role", grant)]
        self.run("root", "create", "-o", self.root, "--key", self.at("root.key"), *roles)

    def at(self, name):
        """A file of it."""
        return self.folder / name

    def run(self, *arguments):
        """Runs inferctl."""
        command = [str(part) for part in (self.program, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr

    def system(self, output, board, version, parts, *options, key="system", probation_s=30):
        """A signed bundle of a system; `parts`: its files by their names (`rootfs`, `boot`, ...)."""
        self.run(*system_command(output, board, version, parts, self.at(f"{key}.key"), probation_s), *options)
        return output


def system_command(output, board, version, parts, key, probation_s):
    """What has inferctl build a signed bundle of a system."""
    files = [word for name, file in parts.items() for word in (f"--{name}", file)]
    command = ["--system", "--version", version, "--board", board, *files, "--probation-seconds", probation_s]
    return ["bundle", "build", *command, "--key", key, "-o", output]
