"""Power cuts for real; `cuts.py` is the campaign, `README.md` says how to run a long one."""

import os
import random
import time

from appliance import cuts, device
from appliance import medium as media

# On two cores about ten a minute, emulated; more appliances than cores are not faster.
CUTS = int(os.environ.get("INFERD_TEST_CUTS", "25"))


def test_wherever_power_is_cut_the_old_model_or_the_new_one_answers_after_it(
    board, patient_image, dev_keys, inferctl, tmp_path, capsys
):
    seed = int(os.environ.get("INFERD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    workshop = device.Workshop(inferctl, dev_keys, tmp_path)
    bench = cuts.prepare(board, patient_image, dev_keys.api_key, workshop, tmp_path, seed)
    begin = time.monotonic()
    with capsys.disabled():
        print(f"\n{CUTS} power cuts, seed {seed}", flush=True)
    tally = cuts.campaign(bench, CUTS, workers=min(os.cpu_count() or 1, 4))
    with capsys.disabled():
        print(tally.page(seed, time.monotonic() - begin), flush=True)
    assert not tally.violations
    assert sum(tally.hit.values()) >= CUTS
    # Each of the rarer ones is hit by every tenth cut: a hundred miss none of them, fewer may.
    due = {"install", "probation", "committed"} | ({"gates", "boot"} if CUTS >= 100 else set())
    assert due <= set(tally.hit), "some phase was never cut"


def test_a_cut_loses_what_was_not_flushed_and_only_that(boot, dev_image, tmp_path):
    """The control: a campaign that loses nothing proves nothing."""
    medium = media.Medium(dev_image, tmp_path)
    options = {"dev": True, "keep_writes": True, "write_log": medium.log, "cpus": 1}
    with boot(medium.path, **options) as machine:
        machine.sh("dd if=/dev/urandom of=/tmp/noise bs=1k count=300; md5sum </tmp/noise >/data/sum")
        machine.sh("dd if=/tmp/noise of=/run/inferd/slots/a bs=4k conv=fsync; sync")
        # A direct write reaches the medium at once, but nobody has asked the medium to keep it.
        machine.sh("dd if=/tmp/noise of=/run/inferd/slots/b bs=4k oflag=direct; echo lost >/data/unflushed")
        before = machine.sh("cat /data/sum")
        machine.cut_power()
    cut = medium.cut(random.Random(1), keep=0)
    assert cut.flushes
    with boot(medium.path, **options) as machine:
        assert machine.sh("cat /data/sum") == before
        slot = "dd if=/run/inferd/slots/{} bs=1k count=300 2>/dev/null | md5sum"
        assert machine.sh(slot.format("a")) == before
        assert machine.sh(slot.format("b")) != before
        assert machine.sh("ls /data/unflushed 2>/dev/null || echo none") == "none"
