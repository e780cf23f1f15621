"""The runner of the tables itself: a wrong expectation must fail, and say where and how."""

from __future__ import annotations

import pytest

from tests.conformance.runner import Mismatch, Runner
from tests.conformance.script import ScriptError, Segment, parse

HEAD = "title: t\nrfc: 0\ncase: c\n"


def run(lines: str) -> None:
    for case in parse(HEAD + lines, "x.tcp"):
        Runner(case).run()


def test_a_right_script_passes() -> None:
    run(
        "reach ESTABLISHED\nwrite 1500\n> . 1:1001 ack 1 win 131072 <ts 100,ecr 100>\n> P. 1001:1501\nexpect timer 0.300"
    )


@pytest.mark.parametrize(
    "line, got, differs",
    [
        ("> S 0", "P. 1:11", "flags, seq"),
        ("> P. 2:12", "P. 1:11", "seq"),
        ("> P. 1:12", "P. 1:11", "seq"),
        ("> . 1:11 ack 2", "P. 1:11 ack 1", "ack"),
        ("> . 1:11 win 5", "win 131072", "win"),
        ("> . 1:11 ect0", "P. 1:11", "ecn"),
        ("> . 1:11 <sack 1:2>", "<ts 100,ecr 100>", "sack"),
        ("> . 1:11 <nots>", "<ts 100,ecr 100>", "ts, ecr"),
        ("> . 1:11 <ts 90>", "<ts 100,ecr 100>", "ts"),
        ("> . 1:11 <ts,ecr 7>", "<ts 100,ecr 100>", "ecr"),
        ("> U. 1:11", "P. 1:11", "flags"),
    ],
)
def test_a_field_that_differs_is_named(line: str, got: str, differs: str) -> None:
    with pytest.raises(Mismatch) as caught:
        run(f"reach ESTABLISHED\nwrite 10\n{line}")
    report = str(caught.value)
    assert report.startswith(f"x.tcp:6: {line}  (case c)")
    assert f"expected:     0.100 {line}\n" in report
    assert got in report
    assert f"\ndiffers in: {differs}\n" in report
    assert report.endswith("0.100 expect state ESTABLISHED\n   0.100 write 10")


@pytest.mark.parametrize(
    "lines, report",
    [
        ("reach ESTABLISHED\n> . 1", "x.tcp:5: > . 1  (case c)\nexpected:     0.100 > . 1\ngot:       nothing"),
        ("reach ESTABLISHED\nwrite 10\n> nothing", "x.tcp:6: > nothing  (case c)\nexpected:  nothing\ngot:          0.100 > P. 1:11"),
        ("reach ESTABLISHED\nwrite 10\nread 0", "x.tcp:6: read 0  (case c)\nexpected:  nothing\ngot:          0.100 > P. 1:11"),
        ("reach ESTABLISHED\nwrite 10", "x.tcp:5: the end  (case c)\nexpected:  nothing\ngot:          0.100 > P. 1:11"),
        ("reach ESTABLISHED\nwrite 10\n> . 1:11\n+0.2 > . 1:11", "expected:     0.300 > . 1:11\ngot:       nothing"),
        ("reach ESTABLISHED\nwrite 10\n> . 1:11\n+0.4 > . 1:11", "got:          0.400 > P. 1:11"),
        ("reach ESTABLISHED\nwrite 10\n> . 1:11\n1.0 < . 1", "x.tcp:7: 1.0 < . 1  (case c)\nexpected:  nothing"),
        ("reach ESTABLISHED\nwrite 10\n> . 1:11\nwithin 0.2 > . 1:11", "got:       nothing"),
        ("reach ESTABLISHED\nexpect state CLOSED", "expected:  state CLOSED\ngot:       state ESTABLISHED"),
        ("reach ESTABLISHED\nexpect timer 1", "expected:  timer 1\ngot:       timer none"),
        ("reach ESTABLISHED\ntimeout", "expected:  a timer"),
        ("reach ESTABLISHED\nerror ConnectionReset", "expected:  error ConnectionReset\ngot:       error none"),
        ("reach ESTABLISHED\nwrite 1 raises ConnectionReset", "expected:  raises ConnectionReset\ngot:       raises none"),
        ("reach FIN-WAIT-2\nwrite 1", "expected:  raises none\ngot:       raises ConnectionReset"),
        ("reach ESTABLISHED\nread 5", "expected:  bytes read 5\ngot:       bytes read 0"),
        ("reach ESTABLISHED\n< P. 1:6 fill z\n> . 1 ack 6\nread 5", "expected:  text of the stream\ngot:       text another"),
        ("reach ESTABLISHED\n< P. 1:6 fill z\n> . 1 ack 6\nread 9 as y5", "expected:  read as y5\ngot:       read as z5"),
        ("reach ESTABLISHED\neof", "expected:  end of the stream True"),
    ],
)  # fmt: skip
def test_a_wrong_expectation_is_told_beside_what_happened(lines: str, report: str) -> None:
    with pytest.raises(Mismatch) as caught:
        run(lines)
    assert report in str(caught.value)


def test_text_of_ours_is_checked() -> None:
    case = parse(HEAD + "reach ESTABLISHED\nwrite 10\n> . 1:11", "x.tcp")[0]
    runner = Runner(case)
    runner._written = 2  # as if another stream had been written
    with pytest.raises(Mismatch, match="differs in: text"):
        runner.run()


@pytest.mark.parametrize(
    "script, error",
    [
        ("rfc: 0\ncase: c\nopen", "x.tcp: no title"),
        ("title: t\ncase: c\nopen", "x.tcp: no rfc"),
        ("title: t\nopen", "x.tcp:2: 'open' has no place here"),
        ("titel: t", "x.tcp:1: 'titel: t' has no place here"),
        (HEAD + "open\nsyn: mss 5", "x.tcp:5: 'syn: mss 5' has no place here"),
        (HEAD, "x.tcp:3: case 'c' does nothing"),
        (HEAD + "open\ncase: c\nopen", "x.tcp: two cases named 'c'"),
        (HEAD + "| a | b |\n| 1 |\nopen", "x.tcp:5: 1 cells in a table of ['a', 'b']"),
        (HEAD + "| a |\n| 1 |\n< R $b", "x.tcp:6: no column 'b'"),
        (HEAD + "reach NOWHERE", "x.tcp:4: no way to 'NOWHERE'"),
        (HEAD + "reach LISTEN\nfly", "x.tcp:5: fly  (case c): nobody knows how to 'fly'"),
        (HEAD + "reach ESTABLISHED\nwrite", "x.tcp:5: write  (case c): 'write' does not go with []"),
        (HEAD + "reach ESTABLISHED\nwrite much", "x.tcp:5: write much  (case c): invalid literal"),
        (HEAD + "reach ESTABLISHED\n< X 1", "x.tcp:5: < X 1  (case c): 'X 1' is no segment"),
        (HEAD + "reach ESTABLISHED\n< S. 1 win 5 ack 1", "'S. 1 win 5 ack 1' is no segment"),
        (HEAD + "reach ESTABLISHED\n< .. 1", "'.. 1' repeats a flag"),
        (HEAD + "reach ESTABLISHED\n< . rcv:9", "behind a mark stands a length"),
        (HEAD + "reach ESTABLISHED\n< . here", "'here' is no sequence number"),
        (HEAD + "reach ESTABLISHED\n< . 1 <speed 9>", "no option 'speed'"),
        (HEAD + "reach ESTABLISHED\n< . 1 win 70000", "a window of 70000 does not fit"),
        (HEAD + "reach ESTABLISHED\nexpect luck 1", "nothing is known of 'luck'"),
        (HEAD + "read 1", "there is no connection yet"),
        (HEAD + "2.5 5", "'2.5 5' is no line of a script"),
    ],
)  # fmt: skip
def test_a_script_that_makes_no_sense_is_refused(script: str, error: str) -> None:
    with pytest.raises(ScriptError) as caught:
        for case in parse(script, "x.tcp"):
            Runner(case).run()
    assert error in str(caught.value)


def test_tables_are_multiplied_and_rows_named_by_the_cells_that_tell_them_apart() -> None:
    script = HEAD + "| a | b |\n| 1 | x |\n| 1 | y |\n\n| c |\n| R |\n| S |\n< $c $a"
    assert [(case.name, case.lines) for case in parse(script, "x.tcp")] == [
        ("c [1, x, R]", ((11, "< R 1"),)),
        ("c [1, x, S]", ((11, "< S 1"),)),
        ("c [1, y, R]", ((11, "< R 1"),)),
        ("c [1, y, S]", ((11, "< S 1"),)),
    ]


def test_an_empty_cell_leaves_its_line_out_and_semicolons_separate_lines() -> None:
    script = HEAD + "| then |\n| |\n| open; close |\nlisten\n$then"
    assert [[line for _, line in case.lines] for case in parse(script, "x.tcp")] == [
        ["listen"],
        ["listen", "open", "close"],
    ]


def test_a_setting_may_come_from_a_table() -> None:
    script = HEAD + "syn: mss $size\n| size |\n| 500 |\nreach ESTABLISHED\nexpect mss 500"
    (case,) = parse(script, "x.tcp")
    Runner(case).run()


def test_by_cuts_a_segment_and_keeps_fin_and_psh_for_the_last() -> None:
    pieces = list(Segment.parse("FP. 1:2501 ack 1 by 1000").pieces())
    assert [(piece.flags, piece.first, piece.length) for piece in pieces] == [
        (".", "1", 1000),
        (".", "1001", 1000),
        ("FP.", "2001", 500),
    ]
