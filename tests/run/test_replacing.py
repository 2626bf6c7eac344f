"""Tests of other settings and inputs: results that are kept, refused or resumed, and what readers see meanwhile.

Sample: each way to split rows into other parts resumes after one number of finished parts; with TEST_CASES=all after
both.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.features import open_features
from pipeline.output.records import read_manifest
from tests.support.cases import ALL_CASES
from tests.support.faulty import Watched
from tests.support.helpers import write_shard
from tests.support.logged import COMPLETE, differs, mentions, resumes_encoding, reuses, reuses_anything
from tests.support.nights import OTHER, STEPS, Stopping, fresh, parts, stamps, standing
from tests.support.soak_protocol import (
    broken_promises,
    leftovers,
    records,
)
from tests.support.standin import Night, features_of


def test_a_finished_run_is_only_replaced_with_overwrite(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before, watched = stamps(out), Watched()
    assert night.run(out, "--epochs", "3", "--on-drift", "clip", disk=watched) == 78
    assert mentions(caplog.text, "ConfigError", f"output={out}", "epochs 2 -> 3", "on_drift pass -> clip")
    assert mentions(caplog.text, "--output", "--overwrite", "--restart")
    assert watched.calls == []
    assert stamps(out) == before


def test_overwriting_reuses_results_that_still_fit(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before = stamps(out)
    (scan_file,) = (name for name in before if name.startswith("stages/scan"))
    caplog.clear()
    assert night.run(out, *OTHER, "--overwrite") == 0
    assert mentions(caplog.text, f"output={out}", "seed 0 -> 1")
    assert reuses(caplog.text, "scan")
    assert stamps(out)[scan_file] == before[scan_file]
    assert features_of(out) == expected(*OTHER)
    assert not [name for name in before if name.startswith(("parts/", "stages/model")) and name in stamps(out)]
    assert broken_promises(out) == leftovers(out) == []


def test_settings_of_the_encoding_keep_the_model(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    caplog.clear()
    assert night.run(out, "--on-drift", "clip", "--overwrite") == 0
    assert reuses(caplog.text, "training")
    assert features_of(out) == expected()


def test_restarting_reuses_nothing(night: Night, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert night.run(out) == 0
    expected, before = features_of(out), stamps(out)
    caplog.clear()
    assert night.run(out, "--restart") == 0
    assert not reuses_anything(caplog.text)
    assert features_of(out) == expected
    assert not {name for name in before if name.startswith(("parts/", "stages/"))} & set(stamps(out))


def test_an_unfinished_run_can_switch_settings_and_back(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, disk=Stopping("commits/part", 2)) == 74
    first = {name for name in standing(out) if name.startswith("parts/part")}
    assert len(first) == 2
    caplog.clear()
    assert night.run(out, *OTHER, "--overwrite", disk=Stopping("commits/part", 1)) == 74
    assert differs(caplog.text)
    assert mentions(caplog.text, "seed 0 -> 1")
    assert reuses(caplog.text, "scan")
    caplog.clear()
    assert night.run(out, "--overwrite") == 0
    assert mentions(caplog.text, "seed 1 -> 0")
    assert reuses(caplog.text, "training")
    assert resumes_encoding(caplog.text)
    assert first <= set(parts(out))
    assert features_of(out) == expected()
    assert leftovers(out) == []


def test_an_interrupted_replacement_keeps_the_old_results(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    assert night.run(out, *OTHER, "--overwrite", disk=Stopping("commits/part", 2)) == 74
    assert features_of(out) == expected()
    begun = standing(out)
    assert night.run(out) == 0
    assert stamps(out) == begun, "the new run may resume"
    caplog.clear()
    assert night.run(out, *OTHER, "--overwrite") == 0
    assert resumes_encoding(caplog.text)
    assert features_of(out) == expected(*OTHER)


EPOCHS = [*STEPS, "--epochs", "3"]


@pytest.mark.parametrize(
    ("kind", "n_named", "kept"),
    [
        ("commits/checkpoint", 2, ("0 of 2", 2)),
        ("commits/model", 1, ("trained",)),
        ("commits/part", 2, ("trained", 20)),
    ],
)
def test_changed_settings_do_not_discard_a_started_training(
    night: Night,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    n_named: int,
    kept: tuple[str | int, ...],
) -> None:
    assert night.run(out, *STEPS, disk=Stopping(kind, n_named)) == 74
    before = standing(out)
    caplog.clear()
    assert night.run(out, *EPOCHS) == 78
    assert mentions(caplog.text, "ConfigError", f"output={out}", *kept, "epochs 2 -> 3")
    assert stamps(out) == before
    assert night.run(out, *STEPS) == 0
    assert features_of(out) == expected()


def test_changed_inputs_do_not_discard_an_unfinished_run(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, disk=Stopping("commits/part", 2)) == 74
    (night.shards / "0.h5").rename(night.shards / "mine.h5")
    for flags in ([], ["--overwrite"]):
        caplog.clear()
        assert night.run(out, *flags) == 78
        assert mentions(caplog.text, f"output={out}", "trained", 20, "0.h5", "--restart")
    assert night.run(out, "--restart") == 0
    assert features_of(out) == fresh(night)


def test_a_run_without_usable_training_can_be_discarded(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/scan", 1)) == 74
    assert night.run(out, *STEPS, "--optimizer", "momentum", disk=Stopping("commits/checkpoint", 2)) == 74
    (out / "model-last-good.h5").touch()  # as after a training that diverges
    caplog.clear()
    assert night.run(out, *STEPS) == 0
    assert mentions(caplog.text, "optimizer momentum -> adam")
    assert features_of(out) == expected()


def test_a_training_that_follows_a_divergence_is_not_discarded(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, *STEPS, "--optimizer", "momentum", disk=Stopping("commits/checkpoint", 2)) == 74
    (out / "model-last-good.h5").touch()  # as after a training that diverges
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    os.utime(out / "model-last-good.h5", ns=(0, (out / "run.json").stat().st_mtime_ns - 1))  # however fast this was
    caplog.clear()
    assert night.run(out, *EPOCHS) == 78
    assert mentions(caplog.text, "ConfigError", f"output={out}", "checkpoint", "epochs 2 -> 3")


def test_the_last_line_names_the_progress_of_the_checkpoint(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    assert mentions(caplog.records[-1].message, "scan", "0 of 2", "step 2", "0 of 55")


def test_features_do_not_replace_the_model_that_makes_them(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before = stamps(out)
    for model in (out, out / "model.h5"):
        for flags in ([], ["--overwrite"], ["--restart"]):
            caplog.clear()
            assert night.run(out, "--model", str(model), *flags) == 78
            assert mentions(caplog.text, "ConfigError", f"output={out}", "model")
    assert stamps(out) == before


@pytest.mark.parametrize("make", [os.link, os.symlink])
def test_links_to_the_features_of_the_output_are_no_input(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path, Path], None]
) -> None:
    """With --restart they would be deleted before they are read."""
    assert night.run(out) == 0
    before = stamps(out)
    night.shards = night.shards.with_name("other names")
    night.shards.mkdir()
    make(out / parts(out)[0], night.shards / "x.h5")
    if make is os.symlink:
        night.shards /= "x.h5"  # links that lead out of a directory are always refused
    for flags in ([], ["--restart"]):
        caplog.clear()
        assert night.run(out, "--dataset", "features", *flags) == 78
        assert f"output={out}" in caplog.text
        assert f"file={night.shards}" in caplog.text
    assert stamps(out) == before


def touch(night: Night) -> None:
    path = night.shards / "2.h5"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def rewrite(night: Night) -> None:
    write_shard(night.shards / "2.h5", np.ones((30, 4), np.float32), extras={"y": np.arange(30)})


INPUTS: dict[str, tuple[Callable[[Night], object], str]] = {
    "touched": (touch, "2.h5 (changed "),
    "rewritten": (rewrite, "2.h5 (shape [35, 4] -> [30, 4]; n_bytes "),
    "added": (lambda night: night.add_shard("3.h5", np.zeros((5, 4), np.float32)), "3.h5 "),
    "removed": (lambda night: (night.shards / "0.h5").unlink(), "0.h5 "),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_a_changed_input_of_a_finished_run_is_detected(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    change, words = INPUTS[kind]
    assert night.run(out) == 0
    change(night)
    assert night.run(out) == 78
    assert words in caplog.text
    assert night.run(out, "--restart" if kind == "removed" else "--overwrite") == 0
    assert features_of(out) == fresh(night)


def test_overwrite_does_not_replace_results_of_other_inputs(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The option in a script refers to results of the same files."""
    assert night.run(out) == 0
    before, watched = stamps(out), Watched()
    (night.shards / "0.h5").rename(night.shards / "mine.h5")
    for flags in ([], ["--overwrite"], ["--overwrite", "--epochs", "1"]):
        caplog.clear()
        assert night.run(out, *flags, disk=watched) == 78
        assert mentions(caplog.text, f"output={out}", "0.h5", "mine.h5", "--output", "--restart")
    assert watched.calls == []
    assert stamps(out) == before
    assert night.run(out, "--restart") == 0
    assert features_of(out) == fresh(night)


def test_other_files_of_the_same_names_are_other_inputs(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out) == 0
    before, first = stamps(out), night.shards
    night.shards = first.with_name("next")
    night.shards.mkdir()
    for path in first.iterdir():
        (night.shards / path.name).write_bytes(path.read_bytes())
    assert night.run(out, "--overwrite") == 78
    assert mentions(caplog.text, f"output={out}", night.shards, first, "0.h5")
    assert stamps(out) == before


def test_the_input_can_be_moved(night: Night, out: Path) -> None:
    assert night.run(out) == 0
    before = stamps(out)
    night.shards = night.shards.rename(night.shards.with_name("moved"))
    assert night.run(out) == 0
    assert stamps(out) == before
    assert night.run(out, "--epochs", "1", "--overwrite") == 0


@pytest.mark.parametrize("kind", [kind for kind in INPUTS if kind != "removed"])
def test_a_changed_input_restarts_an_unfinished_run(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    change, words = INPUTS[kind]
    assert night.run(out, disk=Stopping("commits/part", 2)) == 74
    change(night)
    caplog.clear()
    assert night.run(out) == 0
    assert differs(caplog.text)
    assert words in caplog.text
    assert not reuses_anything(caplog.text)
    assert features_of(out) == fresh(night)
    assert leftovers(out) == []


SIZED_OTHERWISE = [
    *(["--threads", "3"], ["--memory-budget", "16MiB"], ["--memory-budget", "8GiB"]),
    *(["--block-rows", "4"], ["--block-rows", "12"], ["--block-rows", "1000"], ["--device-memory-budget", "0"]),
]


@pytest.mark.slow
@pytest.mark.parametrize("n_committed", [1, 3])
def test_parts_of_other_sizes_are_kept(
    night: Night,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    n_committed: int,
) -> None:
    for flags in SIZED_OTHERWISE if ALL_CASES else SIZED_OTHERWISE[n_committed == 3 :: 2]:
        output = out.with_name(" ".join(flags))
        assert night.run(output, disk=Stopping("commits/part", n_committed)) == 74, flags
        first = {record["entry"]["file"] for record in records(output) if record["key"].startswith("part")}
        assert len(first) == n_committed, flags
        caplog.clear()
        assert night.run(output, *flags) == 0, flags
        assert not differs(caplog.text), flags
        assert first <= set(parts(output)), flags
        assert features_of(output) == expected(), flags
        caplog.clear()
        assert night.run(output) == 0, flags
        assert caplog.records == [] or COMPLETE in (output / "run.log").read_text(), flags


# -- readers -----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_readers_see_whole_results_while_runs_replace_them(night: Night, out: Path) -> None:
    whole = set()
    for flags in ([], OTHER):
        assert night.run(out, *flags, "--overwrite") == 0
        whole.add(open_features(out).features.compute().tobytes())
    assert len(whole) == 2
    over, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not over.is_set() and not wrong:
            before = None
            try:
                before = read_manifest(out)
                seen.add(open_features(out).features.compute().tobytes())
            except (DataError, OSError) as error:
                # A part may go while it is read, but only when the manifest names others by then.
                if read_manifest(out) == before:
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        n_runs = 0
        while not wrong and (n_runs < 10 or seen != whole):
            assert night.run(out, *([], OTHER)[n_runs % 2], "--overwrite") == 0
            n_runs += 1
    finally:
        over.set()
        reader.join()
    assert wrong == []
    assert seen == whole
