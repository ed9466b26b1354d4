#!/usr/bin/env python3
"""What live input costs and how late it is: a sensor of 16 channels at 2 kHz on a serial port (a pseudo-terminal), and clients
of the stream of events.

    tests/perf/live.py [--seconds S] [--hop N] [--clients 1,8,64]
    tests/perf/live.py --soak MINUTES

The sensor notes when it has written each frame, so latency is taken from outside: from the frame that holds a window's last sample to
the event in the client, through kernel, decoder, filters, engine host and the stream's pace. Of the clients the first one asks for 120
frames a second and gives the latency; the others ask for 50. Processor time is the daemon's alone, as shares of one core, and beside it that of the
hosts, where the model runs. Sensor and clients are on the same cores as the device. The soak counts what is missing at its end:
samples, windows, events. `INFERD_BIN` names another daemon than the static release build of this machine.
"""

import argparse
import os
import pathlib
import selectors
import socket
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts/lib")]

import helpers  # noqa: E402
import places  # noqa: E402
from sensors.sensor import RATE, SCALE, STEPS, Sensor, encoder, muscles, source  # noqa: E402

WINDOW = 200
TICKS = os.sysconf("SC_CLK_TCK")


class Timed(Sensor):
    """Notes when each frame was handed to the port, and begins with the sequence 0 when it is told to."""

    def __init__(self, folder, encode):
        super().__init__(folder, encode)
        self.written, self.sending = [], False

    def _frame(self):
        frame = super()._frame()
        self.written.append(time.monotonic())
        return frame

    def begin(self):
        """From now on it sends. What the port does not take at once waits: a busy machine makes events late, not numbers wrong."""
        os.set_blocking(self.master, True)
        with self.lock:
            self.sequence, self.sending = -STEPS, True

    def last_of(self, first):
        """When the last sample of the window that begins with this one was written."""
        return self.written[(first + WINDOW - 1) // STEPS]


class Client:
    """One reader of the stream."""

    def __init__(self, port, fps):
        self.socket = socket.create_connection(("127.0.0.1", port))
        body = f'{{"fps": {fps}}}'.encode()
        head = f"POST /infer/stream HTTP/1.1\r\nHost: device\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        self.socket.setblocking(False)
        self.rest, self.events, self.first, self.last = b"", [], None, None

    def read(self):
        """Takes what has come; False when the stream has ended."""
        try:
            got = self.socket.recv(65536)
        except BlockingIOError:
            return True
        now = time.monotonic()
        *lines, self.rest = (self.rest + got).split(b"\n")
        for line in lines:
            if line.startswith(b"HTTP/") and b" 200 " not in line:
                sys.exit(f"the stream was refused: {line.decode()}")
            if line.startswith(b"data: "):
                self.events.append((now, _number(line, b'"frame":'), _number(line, b'"sample":')))
        return bool(got)


def _number(line, key):
    """A whole number of an event, without parsing all of it: 64 clients are read by one thread."""
    _, _, rest = line.partition(key)
    digits = rest.lstrip()[:20].split(b",")[0].rstrip(b"}")
    return int(digits) if digits.isdigit() else None


def spent(pid):
    """Seconds of processor time of a process and its threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def children(pid):
    """The processes a process has started."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            pass
    return found


def listen(clients, seconds, until=lambda: False):
    """Reads all clients for so long."""
    with selectors.DefaultSelector() as ready:
        for client in clients:
            ready.register(client.socket, selectors.EVENT_READ, client)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not until():
            for key, _ in ready.select(min(left, 0.5)):
                if not key.data.read():
                    sys.exit("the device ended a stream")


def quantiles(values):
    """p50, p95, p99 and the greatest, in milliseconds."""
    values = sorted(value * 1e3 for value in values)
    at = [values[min(len(values) - 1, int(len(values) * share))] for share in (0.5, 0.95, 0.99)]
    return "  ".join(f"{name} {value:7.2f}" for name, value in zip(("p50", "p95", "p99", "max"), [*at, values[-1]], strict=True)) + " ms"


def measure(device, sensor, options, count):
    """So many clients for a while."""
    clients = [Client(device.port, 120)] + [Client(device.port, 50) for _ in range(count - 1)]
    listen(clients, 1)
    for client in clients:
        client.events.clear()
    hosts = children(device.process.pid)
    before, at = [spent(pid) for pid in (device.process.pid, *hosts)], time.monotonic()
    listen(clients, options.seconds)
    wall = time.monotonic() - at
    daemon, *others = [after - old for after, old in zip(map(spent, (device.process.pid, *hosts)), before, strict=True)]
    events = clients[0].events
    late = [came - sensor.last_of(sample) for came, _, sample in events if sample is not None]
    gaps = [b[0] - a[0] for a, b in zip(events, events[1:], strict=False)]
    total = sum(len(client.events) for client in clients)
    print(f"{count:3} clients  {total / wall:7.0f} events/s  daemon {100 * daemon / wall:5.1f} %  hosts {100 * sum(others) / wall:5.1f} %")
    print(f"   last sample to event   {quantiles(late)}")
    print(f"   between two events     {quantiles(gaps)}   deviation {statistics.pstdev(gaps) * 1e3:.2f} ms around {statistics.mean(gaps) * 1e3:.2f}")
    for other in clients[1:2]:
        apart = [b[0] - a[0] for a, b in zip(other.events, other.events[1:], strict=False)]
        print(f"   at 50 frames/s         {quantiles(apart)}   deviation {statistics.pstdev(apart) * 1e3:.2f} ms around {statistics.mean(apart) * 1e3:.2f}")
    for client in clients:
        client.socket.close()


def soak(device, sensor, options):
    """One client for long; then what is missing."""
    client, begin, first = Client(device.port, 50), source(device), len(sensor.written)
    listen([client], options.soak * 60)
    end, sent = source(device), (len(sensor.written) - first) * STEPS
    windows = end["windows"] + end["dropped"] - begin["windows"] - begin["dropped"]
    # Events of a source that is not live have a number, and no sample.
    numbers = [frame for _, frame, sample in client.events if sample is not None]
    frames = numbers[-1] - numbers[0] + 1
    lost = {
        "samples missing": (end["missing"] - begin["missing"], sent),
        "windows dropped": (end["dropped"] - begin["dropped"], windows),
        "windows failed": (end["failed"] - begin["failed"], windows),
        "events missing": (frames - len(set(numbers)), frames),
    }
    for what, (count, of) in lost.items():
        print(f"{what:16} {count:8} of {of:9}  {100 * count / of:.4f} %")
    print(f"gaps {end['gaps'] - begin['gaps']}, opened {end['opened'] - begin['opened']} times, last sample to event over all:")
    print("  ", quantiles([came - sensor.last_of(sample) for came, _, sample in client.events if sample is not None]))


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="per number of clients (10)")
    parser.add_argument("--hop", type=int, default=40, help="samples from window to window (40: 20 ms)")
    parser.add_argument("--clients", default="1,8,64", help="numbers of clients")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="one client for so long instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sensor = Timed(folder, encoder(folder))
        sensor.signal = muscles("Hand Close")
        sensor.plug()
        config = f'[[sources]]\nname = "arm"\nkind = "serial"\npath = "{sensor.path}"\nscale = {SCALE}\nhop = {options.hop}\n'
        device = helpers.Native(folder, models=places.SHIPPED_MODELS, config=config)
        try:
            device.wait_ready()
            helpers.until(lambda: source(device)["opened"] > 0, device)
            helpers.until(lambda: device.request("/v2/models/emg-gestures/ready").status == 200, device)
            sensor.begin()
            helpers.until(lambda: source(device)["predictions"] > 0, device)
            if options.soak:
                soak(device, sensor, options)
            for count in [] if options.soak else map(int, options.clients.split(",")):
                measure(device, sensor, options, count)
        finally:
            sensor.unplug()
            device.stop()


if __name__ == "__main__":
    main()
