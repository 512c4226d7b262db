"""The curves of lesson 05: readings at the right steps, and the committed ones were measured."""
from bench import curves


def test_the_curves_have_a_reading_every_ten_steps_and_the_last(small, monkeypatch, tmp_path):
    monkeypatch.setattr(curves, "path", lambda: tmp_path / "curves.json")
    curves.main(12)
    readings = curves.read()
    assert set(readings["curves"]) == {"labels", "teacher", "both"}
    assert all(curve["step"] == [0, 10, 12] for curve in readings["curves"].values())
    assert len({curve["kl"][0] for curve in readings["curves"].values()}) == 1, (
        "all start from the same student"
    )


def test_the_committed_curves_are_measured_ones():
    readings = curves.read()
    assert (
        "cores" in readings["machine"]
        and readings["curves"]["teacher"]["kl"][-1] < readings["curves"]["labels"]["kl"][-1]
    )
