"""Running all tests in lanes leaves none out, and ends as badly as the worst of them."""

from __future__ import annotations

from pathlib import Path

from tests.lanes import Ended, shares, summed_up, work

HERE = Path(__file__).parent


def test_every_test_file_is_in_one_share() -> None:
    given = [HERE / name for share in shares() for name in share]
    for file in HERE.rglob("test_*.py"):
        assert sum(file == place or place in file.parents for place in given) == 1, file


def test_the_last_line_adds_up_and_the_failures_are_repeated() -> None:
    first = "FAILED tests/a/test_x.py::test_y - assert 1 == 2\n=== 1 failed, 12 passed, 2 warnings in 3.10s ===\n"
    second = "......\n=== 30 passed, 1 deselected, 1 warning in 9.00s ===\n"
    said = summed_up([Ended(["a"], 1, 3.2, first), Ended(["b", "c"], 0, 9.1, second)], 9.4).splitlines()
    assert said[0].split() == ["9", "s", "b", "c"] and "a, exit code 1" in said[1]
    assert said[2] == "FAILED tests/a/test_x.py::test_y - assert 1 == 2"
    assert said[3] == "========== 1 failed, 42 passed, 1 deselected, 3 warning in 9.40s =========="


def test_a_share_whose_tests_are_all_left_out_is_no_failure_and_one_that_cannot_run_is() -> None:
    assert work(["test_lanes.py"], ["-q", "-k", "none_is_called_so"]).exit_code == 0
    ended = work(["test_lanes.py"], ["--no-such-option"])
    assert ended.exit_code == 4 and "no-such-option" in ended.output
