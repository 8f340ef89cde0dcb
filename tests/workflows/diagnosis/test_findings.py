import json

from csat.errors import ConfigError, TeacherError
from workflows.diagnosis.findings import Findings, as_text


def test_an_error_for_users_is_a_failure_and_the_next_check_still_runs():
    said = []
    findings = Findings(say=said.append, spell=lambda text: text.replace("run_folder", "--run_folder"))
    with findings.check("storage", mend="choose another run_folder") as finding:
        raise ConfigError("no\nroom")
    with findings.check("slides", mend="-") as finding:
        finding.note("3 slides")
        finding.note("all \x00 well")
    assert findings.has_failed
    assert said[0] == "FAIL  storage      no\n                   room\n      to mend      choose another --run_folder"
    assert said[1] == "PASS  slides       3 slides; all \\x00 well"


def test_a_warning_does_not_hide_a_failure_nor_the_other_way_round():
    findings = Findings()
    with findings.check("cluster", mend="-") as finding:
        finding.warn("little memory", "end something")
        finding.fail("another torch", "install one")
        finding.warn("little disk", "make room")
    assert (finding.state, finding.mend) == ("FAIL", "end something; install one; make room")
    with findings.check("teacher", mend="-") as finding:
        finding.warn("no licence", "look it up")
    assert finding.state == "WARN"
    said = json.loads(findings.as_json(plan=None))
    assert [each["state"] for each in said["checks"]] == ["FAIL", "WARN"] and said["ok"] is False and said["plan"] is None
    assert as_text(finding).startswith("WARN  teacher")


def test_what_is_wrong_on_every_node_is_mended_once():
    findings = Findings()
    with findings.check("cluster", mend="-") as finding:
        for node in ("a", "b"):
            finding.fail(f"{node} has no weights", "copy them")
        finding.warn("little disk", "make room")
    assert (finding.found, finding.mend) == ("a has no weights; b has no weights; little disk", "copy them; make room")


def test_our_own_bug_is_no_finding():
    findings = Findings()
    try:
        with findings.check("settings", mend="-"):
            raise KeyError("x")
    except KeyError:
        assert findings.all == []


def test_a_teacher_error_is_for_users():
    findings = Findings()
    with findings.check("teacher", mend="give others"):
        raise TeacherError("wrong weights")
    assert findings.all[0].found == "wrong weights" and findings.all[0].mend == "give others"
