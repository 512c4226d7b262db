"""The table of routes: shares and ratios from figures that can be worked out by hand."""
import pandas as pd

from bench import routes


def test_shares_ratios_and_the_fastest(capsys):
    rows = {method: {"file_mb": 300.0, "read_mb": 200.0, "tokens_per_second": 20.0, "perplexity": 50.0}
            for method in routes.ROUTES}
    rows["Q4_K_M"] = {"file_mb": 110.0, "read_mb": 100.0, "tokens_per_second": 80.0, "perplexity": 60.0}
    drafted = {"tokens_per_second": 30.0, "tokens_per_pass": 2.5, "read_mb": 250.0}
    routes.print_routes(rows, drafted, 10e9)
    lines = capsys.readouterr().out.splitlines()
    assert "| transformers | bf16 | 300 | 20.0 | 1.00 | 40% | 50.0 | 1.00 |" in lines
    assert "| llama.cpp | Q4_K_M | 110 | 80.0 | 4.00 | 80% | 60.0 | 1.20 |" in lines
    assert (
        "| speculative, nf4 drafts 4 for bf16 (2.5 tokens a pass) | bf16 |  "
        "| 30.0 | 1.50 | 75% | 50.0 | 1.00 |"
        in lines
    )
    assert lines[-1] == "Fastest: llama.cpp, Q4_K_M, 4.00 times the baseline."


def test_speculation_reads_the_target_and_its_drafts(tiny_folder):
    """An exact draft is kept whole but for rounding: four drafted tokens and one more a pass, at most."""
    found = routes.speculative_row(str(tiny_folder))
    assert 1 <= found["tokens_per_pass"] <= routes.DRAFTED + 1
    assert found["read_mb"] > 0 and found["tokens_per_second"] > 0


def test_mapping_is_printed(tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr(routes.mapping, "memory_map_figures", lambda path: pd.DataFrame(
        {"open_s": [0.1, 0.4], "anonymous_mb": [10.0, 150.0]}, index=["mapped", "read"]))
    routes.print_mapping(str(tiny_folder))
    assert (
        "| read | 400 | 150 |\n\nA mapped start is 4.0 times as fast as a full read."
        in capsys.readouterr().out
    )
