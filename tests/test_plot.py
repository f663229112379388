"""Figures from small logs by hand: what is drawn, and what a log may lack."""

import os
import sys

import matplotlib
import numpy as np
import pytest

import plot
from harness.cli import UserError
from harness.folder import append, write_json


def evaluation(**success):
    """{split: summary}, as far as a figure looks at it."""
    return {split: dict(success=value) for split, value in success.items()}


def records(kls, offset=0.0):
    """A log: evaluated at steps 0 and at the last; kls: KL per trajectory of each step."""
    teacher = evaluation(seen=0.9, unseen=0.8)
    before = evaluation(seen=0.1, unseen=0.2)
    log = [dict(step=0, eval=dict(teacher=teacher, before=before))]
    for n, kl in enumerate(kls, 1):
        turns = [None, kl, n][: 1 + n]  # the first step's episodes are shorter
        log.append(dict(step=n, kl=kl, kl_turn=turns, rounds=n + offset, invalid=0.25 / n))
    log[-1]["eval"] = dict(after=evaluation(seen=0.5 + offset, unseen=0.6))
    return log


def write_run(folder, log, method="f2b", teacher="some/where/tiny-teacher", **more):
    folder.mkdir()
    write_json(str(folder / "args.json"), dict(method=method, teacher=teacher, **more))
    append(folder / "log.jsonl", log)
    return str(folder)


def test_only_seeds_are_seeds_of_one_another(tmp_path):
    """Runs with another loss, schedule or world drawn as seeds of one run, in one band."""
    settings = [dict(loss="reverse", seed=0), dict(loss="reverse", seed=1), dict(loss="forward", seed=0)]
    folders = []
    for i, more in enumerate(settings):
        folders.append(write_run(tmp_path / str(i), records([1.0]), eta=2.0, **more))
    groups = plot.grouped(folders)
    assert {label: len(runs) for label, runs in groups.items()} == {
        "f2b · tiny-teacher · loss reverse": 2, "f2b · tiny-teacher · loss forward": 1}
    assert list(plot.grouped(folders[:2])) == ["f2b · tiny-teacher"]


def test_where_and_when_a_run_lies_makes_no_line(tmp_path):
    """Seeds begun on different days, from a teacher that lies elsewhere or by an older version, as lines of
    their own; two teachers of one name as one; a run named twice counted twice."""
    def made(name, teacher, weights, **more):
        return write_run(tmp_path / name, records([1.0]), teacher=teacher,
                         fingerprint={"teacher": weights, **more.pop("prints", {})}, **more)

    one = made("a", "x/teacher", "11", seed=0, date="2026-01-01", eta=2.0)
    two = made("b", "y/copy", "11", seed=1, date="2026-01-31", prints={"teacher's template": "cc"})
    other = made("c", "y/teacher", "22", seed=0, eta=2.0)
    (tmp_path / "link").symlink_to(one)
    places = [one, f"{one}/", str(tmp_path / "link"), two]
    assert {label: len(runs) for label, runs in plot.grouped(places).items()} == {"f2b · teacher": 2}
    groups = plot.grouped([*places, other])
    assert {label: len(runs) for label, runs in groups.items()} == {
        "f2b · teacher": 2, "f2b · teacher (22)": 1}
    less = made("d", "x/teacher", "11", seed=0, eta=2.0, without="hard.jsonl",
                prints={"list of training tasks": "dd"})
    more = made("e", "x/teacher", "11", seed=0, eta=2.0, without="", prints={"list of training tasks": "ee"})
    assert list(plot.grouped([less, more])) == [
        "f2b · teacher · without hard.jsonl", "f2b · teacher · without "]


def test_held_out_success_is_the_students_on_the_first_split():
    """The teacher's success drawn as the student's, or the last split's."""
    assert plot.held_out(records([3.0, 2.0])) == {0: 0.1, 2: 0.5}
    assert plot.held_out([dict(step=1, kl=1.0)]) == {}


def test_curves_are_smoothed_backwards():
    """A mean over steps that are still to come, or over a gap as if it were 0."""
    assert plot.smoothed(records([4.0, 2.0, 0.0]), "kl", 2) == {1: 4.0, 2: 3.0, 3: 1.0}
    assert plot.smoothed(records([None, None]), "kl", 2) == {}
    assert plot.smoothed(records([4.0, None, 0.0]), "kl", 2) == {1: 4.0, 3: 2.0}


def test_profile_of_turns_by_hand():
    """A turn that was never trained taken as KL 0; late steps mixed into the early ones."""
    runs = [records([1.0] * 10 + [3.0] * 10), records([2.0] * 10 + [5.0] * 10)]
    early = plot.turn_profile(runs, "early")
    late = plot.turn_profile(runs, "late")
    assert np.isnan(early[0])
    assert early[1:] == [1.5, 2.0]  # of steps 1 and 2; turn 2 is there from step 2 on
    assert np.isnan(late[0])
    assert late[1:] == [4.0, 19.5]
    assert plot.turn_profile([[dict(step=0)]], "late") == []


def drawn(axis):
    """(x, y) of every line that has a point."""
    points = []
    for line in axis.lines:
        if len(line.get_xdata()):
            points.append((list(line.get_xdata()), list(line.get_ydata())))
    return points


def test_seeds_become_a_mean_with_a_band():
    """Seeds of different length or rhythm that are averaged across different steps."""
    axis = matplotlib.figure.Figure().subplots()
    seeds = [{0: 1.0, 5: 2.0, 10: 3.0}, {0: 3.0, 10: 4.0}, {}]
    plot.curve(axis, plot.look(0), seeds)
    assert drawn(axis) == [([0, 10], [2.0, 3.5])]
    band = axis.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(0, 1), (0, 3), (10, 3), (10, 4)}
    plot.curve(axis, plot.look(0), [{}, {}])
    plot.curve(axis, plot.look(0), [{1: 1.0}, {2: 1.0}])
    assert len(axis.lines) == 1


def test_success_over_tokens_lies_at_the_seeds_mean():
    """Seeds that trained different numbers of tokens, averaged as if they were at the same place; tokens of
    one step instead of all up to it."""
    axis = matplotlib.figure.Figure().subplots()
    logs = [[dict(step=0), dict(step=1, tokens=10), dict(step=2, tokens=20)],
            [dict(step=0), dict(step=1, tokens=30), dict(step=2, tokens=40)]]
    assert [plot.tokens_until(log) for log in logs] == [{0: 0, 1: 10, 2: 30}, {0: 0, 1: 30, 2: 70}]
    places = [plot.tokens_until(log) for log in logs]
    plot.curve(axis, plot.look(0), [{0: 0.0, 2: 0.5}, {0: 0.0, 2: 1.0}], places)
    assert drawn(axis) == [([0, 50], [0.0, 0.75])]


def test_each_group_is_one_curve():
    """Seeds drawn in colours of their own, or nobody told how many; a run without a teacher or an evaluation
    that breaks the rest, or is not named."""
    taught = [records([3.0, 2.0]), records([3.0, 2.0], 0.25)]
    untaught = [records([None, None])]
    blind = [records([1.0, 1.0])[1:2]]
    figure = plot.draw({"f2b": taught, "sft": untaught, "opd": blind, "b2f": [[]]}, smooth=1)
    success, tokens, invalid, kl, rounds, turns = figure.axes
    legend = figure.legends[0].get_texts()
    assert [text.get_text() for text in legend] == ["f2b, 2 runs", "sft", "opd", "b2f"]
    assert drawn(success) == [
        ([0, 2], [0.1, 0.625]),
        ([0, 2], [0.1, 0.5])]
    assert drawn(invalid) == [([1, 2], [0.25, 0.125])] * 2 + [([1], [0.25])]
    assert drawn(kl) == [
        ([1, 2], [3.0, 2.0]),
        ([1], [1.0])]
    assert drawn(rounds) == [
        ([1, 2], [1.125, 2.125]),
        ([1, 2], [1, 2]),
        ([1], [1])]
    assert len(drawn(turns)) == 5  # first and last steps of three groups; of one nothing is known


def test_turns_that_repeat_have_a_panel_where_logs_have_them():
    """An empty panel in figures of older runs; a run without the field drawn as one that never repeats."""
    older, newer = records([3.0, 2.0]), records([3.0, 2.0])
    for record, share in zip(newer[1:], (0.5, 0.25)):
        record["repeats"] = share
    assert len(plot.draw({"f2b": [older]}, smooth=1).axes) == 6
    figure = plot.draw({"f2b": [newer], "opd": [older]}, smooth=1)
    axis, = [axis for axis in figure.axes if "repeat" in axis.get_title()]
    assert drawn(axis) == [([1, 2], [0.5, 0.25])]


def test_no_line_looks_like_another():
    """The eleventh line in the first one's colour and in nothing else; a picture that cannot be written,
    since its marks want a line with points."""
    looks = [tuple(plot.look(i).values()) for i in range(25)]
    assert len(set(looks)) == 25
    names = plot.draw({str(i): [records([1.0])] for i in range(11)}, smooth=1).legends[0].legend_handles
    figure = plot.draw({str(i): [records([1.0] if i < 10 else [None])] for i in range(11)}, smooth=1)
    figure.savefig(os.devnull, format="png")
    first, eleventh = names[0], names[10]
    assert first.get_color() == eleventh.get_color() and first.get_marker() != eleventh.get_marker()


def test_picture_of_run_folders(tmp_path, capsys):
    """A call from a notebook that changes the user's backend; a label that a trailing slash empties."""
    runs = [
        write_run(tmp_path / "a", records([3.0, None])),
        write_run(tmp_path / "b", records([None, None]), "sft", "tiny-narrow/")]
    assert list(plot.grouped(runs)) == ["f2b · tiny-teacher", "sft · tiny-narrow"]
    backend = matplotlib.rcParams["backend"]
    loaded = "matplotlib.pyplot" in sys.modules
    out = tmp_path / "picture.png"
    plot.main(plot.Args(runs=runs, out=str(out)))
    assert out.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {out}" in capsys.readouterr().out
    assert matplotlib.rcParams["backend"] == backend
    assert ("matplotlib.pyplot" in sys.modules) == loaded


@pytest.mark.parametrize("wrong, words", [
    (dict(runs=None), "at least one run folder"),
    (dict(runs=[]), "at least one run folder"),
    (dict(runs=["/nowhere"]), "/nowhere holds no run"),
    (dict(out="a.gift"), "a.gift is no picture"),
    (dict(out="picture"), "its ending is one of"),
    (dict(out="/nowhere/a.png"), "no folder /nowhere"),
    (dict(smooth=0), "--smooth is at least 1"),
])
def test_a_users_mistake_is_one_sentence(wrong, words, tmp_path):
    """A traceback out of matplotlib, or a picture under another name than the one that is printed."""
    run = write_run(tmp_path / "run", records([1.0]))
    known = dict(runs=[run], out=str(tmp_path / "a.png"))
    args = plot.Args(**{**known, **wrong})
    with pytest.raises(UserError, match=words) as caught:
        plot.main(args)
    assert "\n" not in str(caught.value)
