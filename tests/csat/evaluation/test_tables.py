from csat.evaluation.tables import align, figure, limits


def test_columns_are_aligned():
    lines = [["", "value", "seeds"], ["rckd", "0.91", "3"], ["from scratch", "0.9", "10"]]
    assert align(lines).splitlines() == [
        "              value  seeds",
        "rckd           0.91      3",
        "from scratch    0.9     10",
    ]


def test_what_is_not_known_is_a_dash():
    assert (figure(None), limits(None, 0.1), figure(2_940_000, ".3f", 1e6)) == ("-", "-", "2.940")
    assert limits(-0.01, 0.02, "+.3f") == "[-0.010, +0.020]"
