"""An initramfs archive (cpio "newc"), written without root: device nodes are only entries in a file.

Times are zero and inodes count up, so the same content gives the same bytes.
"""

import stat


class Archive:
    """Entries in the order they are added; parents before children, as the kernel wants them."""

    def __init__(self):
        self.parts = []
        self.inode = 0

    def directory(self, name, mode=0o755):
        """A folder."""
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name, content, mode=0o644):
        """A regular file."""
        self._entry(name, stat.S_IFREG | mode, content)

    def symlink(self, name, target):
        """A symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name, major, minor, mode=0o600):
        """A character device node."""
        self._entry(name, stat.S_IFCHR | mode, b"", (major, minor))

    def bytes(self):
        """The archive."""
        body = b"".join(self.parts) + self._header(0, 0, 0, "TRAILER!!!", (0, 0))
        return body + bytes(-len(body) % 512)

    def _entry(self, name, mode, content, device=(0, 0)):
        self.inode += 1
        self.parts.append(self._header(self.inode, mode, len(content), name, device))
        self.parts.append(content + bytes(-len(content) % 4))

    @staticmethod
    def _header(inode, mode, size, name, device):
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (inode, mode, 0, 0, links, 0, size, 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        return head + bytes(-len(head) % 4)
