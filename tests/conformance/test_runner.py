"""The runner of the tables itself: a wrong expectation must fail, and say where and how."""

from __future__ import annotations

import pytest

from tests.conformance.runner import Mismatch, Runner
from tests.conformance.script import ScriptError, Segment, parse

HEAD = "title: t\nrfc: 0\ncase: c\n"
OPEN = "reach ESTABLISHED\n"
WROTE = OPEN + "write 10\n"
GOT = "got:          0.100 > P. 1:11"


def run(lines: str) -> None:
    for case in parse(HEAD + lines, "x.tcp"):
        Runner(case).run()


def test_a_right_script_passes() -> None:
    run(
        WROTE
        + "> P. 1:11 ack 1 win 131072 <ts 100,ecr 100>\nwrite 1500\n> . 11:1011\n> P. 1011:1511\nexpect timer running"
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
        run(WROTE + line)
    report = str(caught.value)
    assert report.startswith(f"x.tcp:6: {line}  (case c)")
    assert f"expected:     0.100 {line}\n" in report
    assert got in report
    assert f"\ndiffers in: {differs}\n" in report
    assert report.endswith("0.100 expect state ESTABLISHED\n   0.100 write 10")


@pytest.mark.parametrize(
    "lines, report",
    [
        (OPEN + "> . 1", "x.tcp:5: > . 1  (case c)\nexpected:     0.100 > . 1\ngot:       nothing"),
        (WROTE + "> nothing", "x.tcp:6: > nothing  (case c)\nexpected:  nothing\n" + GOT),
        (WROTE + "read 0", "x.tcp:6: read 0  (case c)\nexpected:  nothing\n" + GOT),
        (WROTE, "x.tcp:5: the end  (case c)\nexpected:  nothing\n" + GOT),
        (WROTE + "> . 1:11\n+0.2 > . 1:11", "expected:     0.300 > . 1:11\ngot:       nothing"),
        (WROTE + "> . 1:11\n+0.4 > . 1:11", "got:          0.400 > P. 1:11"),
        (WROTE + "> . 1:11\n1.0 < . 1", "x.tcp:7: 1.0 < . 1  (case c)\nexpected:  nothing"),
        (WROTE + "> . 1:11\nwithin 0.2 > . 1:11", "got:       nothing"),
        (OPEN + "expect state CLOSED", "expected:  state CLOSED\ngot:       state ESTABLISHED"),
        (OPEN + "expect timer running", "expected:  timer running\ngot:       timer none"),
        (OPEN + "timeout", "expected:  a timer"),
        (OPEN + "error ConnectionReset", "expected:  error ConnectionReset\ngot:       error none"),
        (OPEN + "write 1 raises ConnectionReset", "expected:  raises ConnectionReset\ngot:       raises none"),
        ("reach FIN-WAIT-2\nwrite 1", "expected:  raises none\ngot:       raises ConnectionReset"),
        (OPEN + "read 5", "expected:  bytes read 5\ngot:       bytes read 0"),
        (OPEN + "< P. 1:6 fill z\n> . 1\nread 5", "expected:  text of the stream\ngot:       text another"),
        (OPEN + "< P. 1:6 fill z\n> . 1\nread 9 as y5", "expected:  read as y5\ngot:       read as z5"),
        (OPEN + "eof", "expected:  end of the stream True"),
    ],
)
def test_a_wrong_expectation_is_told_beside_what_happened(lines: str, report: str) -> None:
    with pytest.raises(Mismatch) as caught:
        run(lines)
    assert report in str(caught.value)


def test_text_of_ours_is_checked() -> None:
    case = parse(HEAD + OPEN + "write 10\n> . 1:11", "x.tcp")[0]
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
        (HEAD + OPEN + "write", "x.tcp:5: write  (case c): 'write' does not go with []"),
        (HEAD + OPEN + "write much", "x.tcp:5: write much  (case c): invalid literal"),
        (HEAD + OPEN + "< X 1", "x.tcp:5: < X 1  (case c): 'X 1' is no segment"),
        (HEAD + OPEN + "< S. 1 win 5 ack 1", "'S. 1 win 5 ack 1' is no segment"),
        (HEAD + OPEN + "< .. 1", "'.. 1' repeats a flag"),
        (HEAD + OPEN + "< . rcv:9", "behind a mark stands a length"),
        (HEAD + OPEN + "< . here", "'here' is no sequence number"),
        (HEAD + OPEN + "< . 1 <speed 9>", "no option 'speed'"),
        (HEAD + OPEN + "< . 1 win 70000", "a window of 70000 does not fit"),
        (HEAD + OPEN + "expect luck 1", "nothing is known of 'luck'"),
        (HEAD + "read 1", "there is no connection yet"),
        (HEAD + "2.5 5", "'2.5 5' is no line of a script"),
    ],
)
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
