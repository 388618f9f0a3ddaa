"""Gene sets are read or refused, and tested by permuted cells, which keeps the correlation between their genes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.stats import kstest, mannwhitneyu, norm

from latentcell.errors import InputError
from latentcell.stats import gene_sets as module
from latentcell.stats.covariance import covariance_test
from latentcell.stats.gene_sets import enrichment, read_gmt

N_GENES = 300
GENES = [f"GENE{i}" for i in range(N_GENES)]
MODULES = {f"module {k}": GENES[30 * k : 30 * k + 30] for k in range(8)}


def experiment(rng, moved=0.0, shared=1.5):
    """Cells whose genes form modules, correlated by what they share; the first module follows v by `moved`."""
    v = rng.permutation(np.arange(60) % 2).astype(float)
    x = rng.normal(size=(60, N_GENES))
    for k, genes in enumerate(MODULES.values()):
        columns = [GENES.index(gene) for gene in genes]
        x[:, columns] += shared * rng.normal(size=(60, 1)) + (moved * v[:, None] if k == 0 else 0.0)
    return covariance_test(v, x, n_permutations=199, keep_permuted=True, rng=rng)


@pytest.fixture(scope="module")
def nulls():
    """Results of experiments in which nothing moves."""
    found = [experiment(np.random.default_rng(seed)) for seed in range(60)]
    return found, [enrichment(each.statistic, each.permuted, GENES, MODULES) for each in found]


# ---- the test


def test_p_is_uniform_for_sets_of_correlated_genes(nulls) -> None:
    p = np.concatenate([table["p"] for table in nulls[1]])
    assert len(p) == 60 * len(MODULES)
    assert kstest(p, "uniform").pvalue > 0.001
    assert 0.02 <= np.mean(p <= 0.05) <= 0.09


def test_permuting_genes_would_call_sets_of_correlated_genes_significant(nulls) -> None:
    rng = np.random.default_rng(0)
    by_genes, by_wilcoxon = [], []
    for found in nulls[0][:20]:
        null = np.stack([rng.permutation(found.statistic) for _ in range(199)]).astype(np.float32)
        table = enrichment(found.statistic, null, GENES, MODULES)
        by_genes.append(table["p"] <= 0.05)
        by_wilcoxon.append(2 * norm.sf(np.abs(table["score"])) <= 0.05)
    assert np.mean(by_genes) > 0.4
    assert np.mean(by_wilcoxon) > 0.4


def test_a_set_that_moves_is_found_with_its_direction_and_leading_genes() -> None:
    for sign, direction in ((1, "up"), (-1, "down")):
        found = experiment(np.random.default_rng(1), moved=sign, shared=0.5)
        table = enrichment(found.statistic, found.permuted, GENES, MODULES)
        assert table.columns.tolist() == ["gene_set", "n_genes", "score", "p", "q", "direction", "leading"]
        first = table.iloc[0]
        assert (first["gene_set"], first["n_genes"], first["direction"]) == ("module 0", 30, direction)
        assert first["q"] <= 0.05
        assert sign * first["score"] > 5
        expected = [GENES[i] for i in np.argsort(-sign * found.statistic[:30])[:5]]
        assert first["leading"] == ", ".join(expected)
        assert table["p"].is_monotonic_increasing


def test_score_is_the_standardised_rank_sum_of_wilcoxon() -> None:
    rng = np.random.default_rng(2)
    statistic = rng.normal(size=N_GENES)
    mirrored = np.stack([-statistic, statistic, -statistic])  # with the observed one, they centre on the middle rank
    table = enrichment(statistic, mirrored, GENES, MODULES).set_index("gene_set")
    inside = statistic[:30]
    expected = mannwhitneyu(inside, statistic[30:], use_continuity=False, method="asymptotic").pvalue
    np.testing.assert_allclose(2 * norm.sf(abs(table.loc["module 0", "score"])), expected)
    np.testing.assert_array_equal(table["p"], 1.0)  # arrangements that mirror or repeat the true one are as extreme


def test_sets_of_rarely_detected_genes_are_neither_favoured_nor_given_a_direction_by_their_skew() -> None:
    scores, p = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        v = (np.arange(200) < 14).astype(float)
        x = rng.poisson(np.where(np.arange(N_GENES) < 30, 0.05, 2.0), size=(200, N_GENES))
        found = covariance_test(v, x, n_permutations=99, keep_permuted=True, rng=rng)
        table = enrichment(found.statistic, found.permuted, GENES, MODULES).set_index("gene_set")
        scores.append(table.loc["module 0", "score"])
        p.append(table.loc["module 0", "p"])
    assert abs(np.mean(scores)) < 0.8
    assert np.mean(np.array(p) <= 0.1) < 0.3


def test_blocks_do_not_matter(monkeypatch) -> None:
    found = experiment(np.random.default_rng(3))
    whole = enrichment(found.statistic, found.permuted, GENES, MODULES)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 7 * N_GENES)
    assert enrichment(found.statistic, found.permuted, GENES, MODULES).equals(whole)


# ---- which genes, which sets


def drawn(seed: int = 0, n_genes: int = N_GENES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n_genes), rng.normal(size=(49, n_genes)).astype(np.float32)


def test_sets_are_judged_by_their_measured_genes_and_left_out_by_size() -> None:
    sets = {
        "small": GENES[:4],
        "fits": [*GENES[:5], GENES[0], "ABSENT1", "ABSENT2"],
        "large": GENES[:60],
        "all": GENES,
    }
    table = enrichment(*drawn(), GENES, sets, smallest=5, largest=50)
    assert table["gene_set"].tolist() == ["fits"]
    assert table["n_genes"].tolist() == [5]
    assert "all" not in enrichment(*drawn(), GENES, sets, smallest=1)["gene_set"].tolist()


def test_columns_of_one_name_all_belong_to_its_sets() -> None:
    names = ["GENE0", *GENES[:-1]]
    table = enrichment(*drawn(), names, {"set": GENES[:10]})
    assert table["n_genes"].tolist() == [11]


def test_case_is_disregarded_and_said_so_only_where_names_are_hardly_found_as_written(caplog) -> None:
    mouse = [name.capitalize() for name in GENES]
    with caplog.at_level(logging.INFO, logger="latentcell"):
        human_table = enrichment(*drawn(), GENES, MODULES)
        enrichment(*drawn(), [*mouse[:100], *GENES[100:]], MODULES)
        assert not caplog.records
        table = enrichment(*drawn(), mouse, MODULES)
    assert "without regard to case" in caplog.text
    assert table.drop(columns="leading").equals(human_table.drop(columns="leading"))
    assert table["leading"].str.startswith("Gene").all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": GENES[:-1]}, "299 gene names"),
        ({"permuted": np.zeros(N_GENES)}, "permutations x genes"),
        ({"permuted": np.zeros((9, 4))}, "permutations x genes"),
        ({"permuted": np.zeros((0, N_GENES))}, "keep_permuted=True"),
        ({"statistic": np.full(N_GENES, np.nan)}, "missing or infinite"),
        ({"sets": {}}, "no gene sets"),
        (
            {"names": [f"ENSG{i}" for i in range(N_GENES)]},
            "'GENE0', 'GENE1', 'GENE10' and .* 'ENSG0', 'ENSG1', 'ENSG2'",
        ),
        ({"sets": {"a": GENES[:3]}}, "None of the 1 gene sets has 10 to 500 genes among the 300 measured"),
    ],
)
def test_input_without_an_answer_is_refused_in_plain_words(change, message) -> None:
    statistic, permuted = drawn()
    given = {"statistic": statistic, "permuted": permuted, "names": GENES, "sets": MODULES} | change
    with pytest.raises(InputError, match=message):
        enrichment(**given)


# ---- files


def test_a_gmt_file_gives_the_genes_of_each_set(tmp_path) -> None:
    file = tmp_path / "sets.gmt"
    file.write_text("\ufeffA\tabout a\tX\tY\tX\t\t\r\n\nB\t\tZ\n", encoding="utf-8")
    assert read_gmt(file) == {"A": ["X", "Y"], "B": ["Z"]}
    assert read_gmt(str(file)) == read_gmt(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"A\tb\tX\nA, b, X\n", "Line 2 of .*sets.gmt is not a gene set"),
        (b"A\tdescription\n", "Line 1 .* at least one gene"),
        (b"\tdescription\tX\n", "Line 1 .* a name"),
        (b"A\t\tX\nA\t\tY\n", "'A' a second time"),
        (b"\xff\xfe\x00A", "sets.gmt cannot be read"),
        (None, "sets.gmt cannot be read"),
    ],
)
def test_files_that_hold_no_gene_sets_are_refused_by_path_and_line(tmp_path, content, message) -> None:
    file = tmp_path / "sets.gmt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_gmt(file)


def test_hallmark_sets_are_read_and_tested(data_dir) -> None:
    file = data_dir / "genesets" / "h.all.v7.0.symbols.gmt"
    if not file.is_file():
        pytest.skip(f"no {file}")
    sets = read_gmt(file)
    assert len(sets) == 50
    assert "JUNB" in sets["HALLMARK_TNFA_SIGNALING_VIA_NFKB"]
    genes = sorted({gene for each in sets.values() for gene in each})
    statistic, permuted = drawn(n_genes=len(genes))
    statistic[[genes.index(gene) for gene in sets["HALLMARK_HYPOXIA"]]] += 1
    table = enrichment(statistic, permuted, genes, sets)
    assert len(table) == 50
    assert table["gene_set"][0] == "HALLMARK_HYPOXIA"
    assert table["n_genes"].max() <= 200
