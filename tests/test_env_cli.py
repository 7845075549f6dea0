import json

from swaa.attention import BACKENDS


def test_env_says_what_serves_and_why_the_others_do_not(prints):
    report = json.loads(prints("env", "--json"))
    assert report["versions"]["swaa"]
    assert set(report["backends"]) == set(BACKENDS)
    assert report["backends"]["reference"] == {"prefill": None, "decode": None, "training": None}
    for kind, chosen in report["auto"].items():
        assert report["backends"][chosen][kind] is None
        for better in BACKENDS[: BACKENDS.index(chosen)]:
            assert report["backends"][better][kind]


def test_env_prints_a_table_and_each_reason_once(prints):
    text = prints("env")
    assert all(name in text for name in ("torch", "device:", "auto takes", *BACKENDS))
    reasons = [line for line in text.splitlines() if line.startswith("fa4 (")]
    assert len(reasons) == len(set(reasons)) >= 1
