"""The plot of a run's losses: runs that were cut, and a picture that grows where somebody watches."""
import IPython.display
import pytest

from tests.pictures.examples import loss_plot


def test_the_loss_plot_keeps_runs_apart():
    plot = loss_plot()
    assert plot.runs == [{1: 2.0, 2: 1.9, 3: 1.8}, {3: 1.8, 4: 1.6}]
    crosses, line = plot.picture().axes[0].lines
    assert list(crosses.get_xdata()) == [1, 2, 3] and list(line.get_xdata()) == [1, 2, 3, 4]


@pytest.mark.parametrize("watched", [True, False])
def test_the_loss_plot_is_live_where_somebody_watches(monkeypatch, watched):
    calls = []

    class Handle:
        def update(self, figure):
            calls.append("update")

    monkeypatch.setattr(
        IPython.display, "display", lambda figure, display_id: calls.append("display") or Handle()
    )
    monkeypatch.setattr("course_lib.pictures.charts.training.show_progress", lambda: watched)
    loss_plot()
    assert calls == (["display"] + ["update"] * 4 if watched else [])
