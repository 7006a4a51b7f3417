"""The tables and every number in the text of the page follow from the stored tables."""

from __future__ import annotations

import functools
import itertools
import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import probekit as pk
from probekit.errors import ProbekitWarning
from probekit.perturbations.corruptions.corruption import CORRUPTIONS

ROOT = Path(__file__).parents[2] / "docs"
FOLDER = ROOT / "reproduction" / "cifar10"


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "reproduction.md").read_text()


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv")


def by_alpha(frame: pd.DataFrame, name: str) -> pd.Series[float]:
    return frame.groupby("alpha")[name].mean()


def test_the_exploratory_tables_are_on_the_page(page: str) -> None:
    script = runpy.run_path(str(FOLDER / "exploratory.py"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbekitWarning)
        tables = script["page_tables"]()
    assert len(tables) == page.count("<!-- table: ") == 14
    for name, text in tables.items():
        assert f"<!-- table: {name} -->\n\n{text}\n\n" in page, name


MINUS = "\N{MINUS SIGN}"


def first_screen() -> list[str]:
    """The sentences with numbers on the page's first screen, from the tables."""
    networks, measures = table("networks"), table("measures")
    sweep = networks[networks["variant"] == "sweep"]
    zoo = networks[networks["variant"] == "zoo"].set_index("alpha")
    index, accuracy = by_alpha(sweep, "selectivity_mean"), 100 * by_alpha(sweep, "accuracy")
    plain = sweep[sweep["alpha"] == 0].set_index("seed")["accuracy"]
    slightly = sweep[sweep["alpha"] == -0.4].set_index("seed")["accuracy"]
    loss = by_alpha(sweep.assign(loss=100 * (sweep["seed"].map(plain) - sweep["accuracy"])), "loss")
    fold = index[0] / index
    falls = {name: ratio(name) for name in ("index", "eta_squared", "auc")}
    raised = table("claims").set_index("claim").loc["C7"]
    gap = by_alpha(measures, "change_pgd") - by_alpha(measures, "change_matched")
    flat = by_alpha(measures, "flat_pgd") - by_alpha(measures, "flat_matched")
    fewer = gap.index[gap < 0].min()
    assert (gap[fewer:] < 0).all()
    assert (flat > 0).all()
    attacked = {by_alpha(measures, f"{name}_relative").idxmax() for name in ("fgsm", "pgd")}
    shown = trends().query("p < 0.05").groupby("name")["side"].apply(set)
    assert shown["corrupted_relative"] == {"all", "below", "above"}
    assert shown["jacobian_norm"] == {"all", "below", "above"}
    for name in ("corrupted", "cv_over_samples", "cv_over_units", "dimensions_clean"):
        assert shown[name] == {"all", "above"}
    for name in ("fgsm_relative", "pgd_relative", "excess_matched"):
        assert shown[name] == {"all", "below"}
    assert shown["fgsm"] == shown["pgd"] == {"below"}
    return [
        f"{fold[-5]:.1f}-fold, the first of our alphas beyond 2.5-fold, costs {loss[-5]:.1f} points",
        f"it costs {loss[-20]:.1f}.",
        f"{fold[-2]:.1f}-fold (alpha {MINUS}2) costs {loss[-2]:.1f} points",
        f"and {fold[-1]:.1f}-fold (alpha {MINUS}1) {loss[-1]:.1f};",
        f"Ten epochs reach {accuracy[0]:.1f}% at alpha 0, 36 epochs {100 * zoo['accuracy'][0]:.1f}%",
        "after 36 epochs, with one seed, "
        + " and ".join(f"{100 * (zoo['accuracy'][0] - zoo['accuracy'][a]):.1f}" for a in (-2, -1)),
        f"by {raised['estimate']:.3f} with five seeds (p {raised['p_change']:.3f} before correction)",
        f"five seeds detect a difference of {detected():.3f} with a probability of 80%",
        f"A reduction of {fold[-0.4]:.1f}-fold (alpha {MINUS}0.4) costs less than 0.5 points: "
        f"accuracy changes by {paired(100 * (slightly - plain), 0.9, 2)} (90% interval, eight seeds",
        f"alpha 2 ({accuracy[2]:.0f}% after ten epochs)",
        f"fall too, but less: {falls['auc']:.1f}- to {falls['eta_squared']:.1f}-fold, where the index falls "
        f"{falls['index']:.1f}-fold",
        f"than corruptions of the same size (B3), at alpha {MINUS}{-fewer:g} and above",
        f"robustness to attacks is highest at alpha {attacked.pop():g}, and networks at alpha 1 are less",
    ]


def paired(differences: pd.Series[float], level: float = 0.95, digits: int = 1) -> str:
    """A mean difference with its t interval, by SciPy."""
    low, high = stats.t.interval(
        level, len(differences) - 1, differences.mean(), stats.sem(differences)
    )
    return f"{differences.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".replace(
        "-", MINUS
    )


def detected() -> float:
    """The difference that a paired t test of PGD and plain training detects in four of five cases."""
    networks = table("networks").set_index(["variant", "alpha", "seed"]).sort_index()
    index = networks["selectivity_mean"]
    differences = (index["pgd", 0] - index["sweep", 0]).dropna()
    critical = stats.t.isf(0.025, len(differences) - 1)
    sizes = np.arange(0, 0.02, 0.0001)
    power = stats.nct.sf(critical, len(differences) - 1, sizes / stats.sem(differences))
    return float(sizes[power >= 0.8][0])


def page_p(values: pd.DataFrame) -> float:
    """Page's test of rows of seeds, two-sided, by adding up the chances of all orders."""
    chance, found = {0: 1.0}, 0
    places = np.arange(1, values.shape[1] + 1)
    for row in np.rint(2 * values.rank(axis=1).to_numpy()).astype(int):
        found += int(row @ places)
        orders = np.array(list(itertools.permutations(row)))
        sums, count = np.unique(orders @ places, return_counts=True)
        parts = [(a + int(b), p * q) for a, p in chance.items()
                 for b, q in zip(sums, count / len(orders), strict=True)]  # fmt: skip
        chance = pd.DataFrame(parts).groupby(0)[1].sum().to_dict()
    tails = (sum(p for s, p in chance.items() if sign * s >= sign * found) for sign in (1, -1))
    return min(1.0, 2 * min(tails))


@functools.cache
def trends() -> pd.DataFrame:
    """Rank correlations within seeds over all alphas and on each side of 0, with p by Holm."""
    measures = table("measures")
    attacks = {
        name: measures[[f"{name}_{e}" for e in (1, 2, 4)]].mean(axis=1) for name in ("fgsm", "pgd")
    }
    frame, found = measures.assign(**attacks), []
    for name in ("corrupted", "corrupted_relative", "fgsm", "fgsm_relative", "pgd", "pgd_relative",
                 "jacobian_norm", "cv_over_samples", "cv_over_units", "dimensions_clean",
                 "excess_matched"):  # fmt: skip
        values = frame.pivot(index="seed", columns="alpha", values=name)
        for side, part in (
            ("all", values),
            ("below", values.loc[:, :0]),
            ("above", values.loc[:, 0:]),
        ):
            found.append({"name": name, "side": side, "r": within_seeds(part), "p": page_p(part)})
    rows = pd.DataFrame(found).sort_values("p")
    rows["p"] = np.minimum((rows["p"] * np.arange(len(rows), 0, -1)).cummax(), 1)
    return rows


def within_seeds(values: pd.DataFrame) -> float:
    """The mean over seeds of the rank correlation with alpha."""
    return float(
        values.T.corrwith(pd.Series(values.columns, values.columns), method="spearman").mean()
    )


def trends_on_each_side() -> list[str]:
    """The sentences below the tables of trends and of the dimensions of the change."""
    measures = table("measures")
    by_seed = {name: measures.pivot(index="seed", columns="alpha", values=name)
               for name in measures.columns.difference(["alpha", "seed"])}  # fmt: skip
    less = 100 * (by_seed["fgsm_relative"][0] - by_seed["fgsm_relative"][1])
    low, high = stats.t.interval(0.95, len(less) - 1, less.mean(), stats.sem(less))
    size = {
        attack: [
            f"{within_seeds(by_seed[f'{attack}_{e}'] / by_seed['accuracy_clean']):.2f}"
            for e in (1, 2, 4)
        ]
        for attack in ("fgsm", "pgd")
    }
    family = {
        name: within_seeds(by_seed[f"{name}_relative"])
        for name in ("noise", "blur", "weather", "digital")
    }
    severity = [within_seeds(by_seed[f"severity_{one}_relative"]) for one in range(1, 6)]
    assert min(family, key=family.get) == "digital"  # type: ignore[arg-type]
    assert max(family, key=family.get) == "noise"  # type: ignore[arg-type]
    assert by_alpha(measures, "rise_pgd").abs().max() < 0.01
    flat = by_alpha(measures, "flat_signs") - by_alpha(measures, "flat_pgd")
    assert (flat > 0).all()
    fall = {
        name: by_alpha(measures, name)[0] / by_alpha(measures, name)[-2]
        for name in ("index", "eta_squared")
    }
    return [
        "rises or falls by less than 1% of the units under PGD at every alpha",
        f"are {less.mean():.1f} points *less* robust to FGSM than plain ones [{low:.1f}, {high:.1f}]",
        "trends of FGSM are {}, {} and {} at 1, 2 and 4/255".format(*size["fgsm"]),
        "those of PGD {}, {} and {}".format(*size["pgd"]),
        f"({MINUS}{-family['noise']:.2f} for noise to {MINUS}{-family['digital']:.2f} for digital",
        f"({MINUS}{-severity[0]:.2f} at severity 1, {MINUS}{-max(severity[1:]):.2f} to "
        f"{MINUS}{-min(severity):.2f} above)",
        f"the index falls {fall['index']:.1f}-fold and the share of variance between classes "
        f"{fall['eta_squared']:.1f}-fold (seeds 0 to 3)",
    ]


def ratio(name: str, floor: bool = False) -> float:
    """The geometric mean over seeds of a measure at alpha 0 over alpha -2, or of what is above its floor."""
    sweep = (
        table("selectivity").query("variant == 'sweep' and seed < 4").set_index(["alpha", "seed"])
    )
    values = (sweep[name] - sweep[f"null_{name}"]) if floor else sweep[name]
    return float(np.exp((np.log(values[0]) - np.log(values[-2])).mean()))


def what_low_selectivity_is() -> list[str]:
    """The sentences of the sections on constants, rotations and gradients."""
    measures, constants = table("measures"), table("constants")
    sweep = table("selectivity").query("variant == 'sweep' and seed < 4")
    mean = {
        name: by_alpha(sweep, name) for name in sweep.columns if name not in ("variant", "alpha")
    }
    cv = by_alpha(measures, "cv_over_active_samples")
    trend = {
        name: float(
            pk.page_trend(measures.set_index(["alpha", "seed"])[name].to_xarray())["correlation"]
        )
        for name in ("cv_over_active_samples", "cv_over_samples")
    }
    times, late = constants["times"], table("bases").query("layer == 'layer3.2.relu2'")
    found, axes = by_alpha(late, "found"), by_alpha(late, "axes")
    early = table("bases").query("layer == 'layer1.2.relu2'").set_index("alpha")
    both = table("pwcca").query("weights == 'uniform'")
    left = by_alpha(both, "ratio_within")[-2] - 1
    assert cv[:0.0].max() - cv[:0.0].min() < 0.05
    return [
        f"Constants of {times.min():.1f} to {times.max():.1f} times each unit's mean",
        f"fall {ratio('eta_squared'):.2f}- and {ratio('auc'):.2f}-fold. The index falls "
        f"{ratio('index'):.2f}-fold",
        f"the index of map elements falls {ratio('per_element', floor=True):.2f}-fold",
        f"the index falls {ratio('axes'):.2f}-fold on the units' axes, and "
        f"{ratio('rotation', floor=True):.2f}-fold in the best rotation",
        f"rotations reach {found[-2]:.2f} at alpha {MINUS}2 and {found[0]:.2f} at 0, "
        f"where the axes have {axes[-2]:.2f} and {axes[0]:.2f}",
        f"It falls {ratio('offset_free'):.2f}-fold, but permuted labels give "
        f"{mean['null_offset_free'][0]:.2f} with it, more than the {mean['offset_free'][-2]:.2f} of "
        f"alpha {MINUS}2",
        f"permuted labels give an index of {mean['null_index'][1]:.2f} at alpha 1, where true ones give "
        f"{mean['index'][1]:.2f}",
        f"rotations reach {early['found'][-2]:.2f} at alpha {MINUS}2 and {early['found'][0]:.2f} at 0, with "
        f"{early['permuted'][-2]:.2f} and {early['permuted'][0]:.2f} under permuted labels",
        f"uniform weights, networks at alpha {MINUS}2 are {100 * left:.0f}% further from plain ones",
        f"(rank correlation within seeds {trend['cv_over_active_samples']:.2f}, over all samples "
        f"{trend['cv_over_samples']:.2f}), from {cv[0]:.2f} at alpha 0 to {cv[1]:.2f} at 1",
        f"over all samples it is {by_alpha(measures, 'cv_over_samples')[1]:.2f}",
    ]


def other_direction() -> list[str]:
    """The sentence about PGD training, on two samples of images."""
    few = table("selectivity").set_index(["variant", "alpha", "seed"])["index"]
    change = (few["pgd", 0] - few["sweep", 0]).dropna().mean()
    every = table("claims").set_index("claim").loc["C7", "estimate"]
    return [f"on these 1,000 images ({change:.3f}, where all 10,000 give {every:.3f})"]


def what_units_do() -> list[str]:
    """The sentences of the sections on ablation and robustness, and on how the networks were measured."""
    measures = table("measures")
    plain = measures[measures["alpha"] == 0].set_index("seed")
    within = []
    for value in ("zero", "mean"):
        top, random = (plain[f"ablated_{order}_{value}"].to_xarray() for order in ("top", "random"))
        one = pk.compare_means(top, random, paired=True)
        within.append(max(abs(float(one[end])) for end in ("low", "high")))
    share = (
        100 * by_alpha(measures, "ablated_random_mean") / by_alpha(measures, "ablated_random_zero")
    )
    degrees, tests = 6 * 3 - 1, 12
    t = stats.t.isf(0.025 / tests, degrees)
    least = t / np.sqrt(degrees + t**2)
    margin = 100 * (by_alpha(measures, "pgd_margin_2") - by_alpha(measures, "pgd_2")).abs().max()
    radius = by_alpha(measures, "linear_radius")
    assert measures["vanishing_gradients"].max() == 0
    assert measures["pgd_8"].max() <= 0.001
    return [
        f"within {within[0]:.1f} points zeroed and {within[1]:.1f} points held at their mean",
        f"cost {share.min():.0f} to {share.max():.0f}% of what zeroing them costs",
        f"With {len(measures)} networks, the largest correlation must exceed {least:.2f} to be significant",
        f"within {margin:.1f} points of PGD on cross-entropy, no gradient vanishes, and the linear radius is "
        f"{radius.min():.1f} to {radius.max():.1f}/255",
    ]


def slope(mediator: str, outcome: str) -> float:
    """The slope over networks of one alpha: least squares with an intercept for each alpha and each seed."""
    measures = table("measures")
    groups = pd.get_dummies(measures[["alpha", "seed"]].astype(str), dtype=float)
    columns = np.column_stack([np.log(measures[mediator]), groups])
    return float(np.linalg.lstsq(columns, np.log(measures[outcome]), rcond=None)[0][0])


def what_predicts_robustness() -> list[str]:
    """The sentences about what a change of a measure predicts for robustness."""
    measures = table("measures").groupby(["alpha", "seed"]).mean()
    used = ["fgsm_relative", "pgd_relative", "dimensions_clean", "jacobian_norm", "linear_radius"]
    means = np.log(measures[used]).groupby("alpha").mean()
    change = {step: means.loc[step[1]] - means.loc[step[0]] for step in ((-2, 0), (0, 0.4), (0, 1))}
    predicted = {
        outcome: 100 * np.expm1(change[0, 1]["jacobian_norm"] * slope("jacobian_norm", outcome))
        for outcome in ("fgsm_relative", "pgd_relative")
    }
    for outcome in predicted:
        for step in ((-2, 0), (0, 0.4)):
            by_radius = change[step]["linear_radius"] * slope("linear_radius", outcome)
            assert abs(by_radius - change[step][outcome]) < 0.03
        assert change[-2, 0][outcome] > change[0, 0.4][outcome]
    assert abs(change[-2, 0]["dimensions_clean"]) < 0.04
    smaller = -100 * np.expm1(change[0, 1])
    return [
        f"alpha 1 are {predicted['fgsm_relative']:.0f}% (FGSM) and {predicted['pgd_relative']:.0f}% (PGD) "
        "more robust than those of alpha 0",
        f"their gradients are {smaller['jacobian_norm']:.0f}% smaller, but the linear radius, which divides "
        f"the margin by the gradient, is {smaller['linear_radius']:.0f}% smaller too",
    ]


def on_tiny_imagenet() -> list[str]:
    """The sentences about the networks of Tiny ImageNet, and what the papers report."""
    found = pd.read_csv(FOLDER.parent / "tiny-imagenet" / "networks.csv")
    found = found.set_index(["alpha", "seed"]).sort_index()
    paper = pd.read_csv(FOLDER.parent / "digitized.csv").query("paper == 'A'").set_index("alpha")
    index, accuracy, kinds = paper["selectivity"], paper["accuracy"], list(CORRUPTIONS)
    points = {alpha: 100 * (found.loc[alpha] - found.loc[0]) for alpha in (-1, 1)}
    share = 100 * found.div(found["clean"], axis=0)
    relative = {alpha: share.loc[alpha] - share.loc[0] for alpha in (-1, 1)}
    fold = found.loc[0]["selectivity"] / found.loc[-1]["selectivity"]
    attacks = [name for name in found if name.startswith(("fgsm", "pgd"))]
    higher = relative[-1][kinds].gt(0).sum(axis=1)
    assert points[1][kinds].lt(0).all(axis=None)
    assert np.sign(relative[1][attacks].T).nunique().eq(1).all()
    assert np.sign(relative[-1][attacks].mean(axis=1)).sum() == 0
    assert np.sign(relative[1][attacks].mean(axis=1)).sum() == 0

    def both(values: pd.Series[float], joined: str = " and ") -> str:
        return joined.join(f"{value:.1f}".replace("-", MINUS) for value in values)

    return [
        f"gains {accuracy[-1] - accuracy[0]:.1f} points from alpha {MINUS}1, where the "
        f"index falls from {index[0]:.2f} to {index[-1]:.2f}, and loses {accuracy[0] - accuracy[1]:.1f} "
        f"points at alpha 1, where it rises to {index[1]:.2f}",
        f"changes it by {both(points[-1]['accuracy'])} points in the two seeds, while the index falls "
        f"{both(fold, '- and ')}-fold",
        f"Alpha 1 costs {both(-points[1]['accuracy'])} points",
        f"relative to clean accuracy is {both(relative[-1][kinds].mean(axis=1))} points higher",
        f"higher for {higher[0]} and {higher[1]} of the {len(kinds)} types",
        f"accuracy is {both(-points[1][kinds].mean(axis=1))} points lower",
        f"the seeds disagree ({both(relative[1][kinds].mean(axis=1))} points)",
    ]


SENTENCES = [
    *first_screen(),
    *trends_on_each_side(),
    *what_low_selectivity_is(),
    *other_direction(),
    *what_units_do(),
    *what_predicts_robustness(),
    *on_tiny_imagenet(),
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_numbers_in_the_text_follow_from_the_tables(page: str, sentence: str) -> None:
    assert " ".join(sentence.split()) in re.sub(r"\s+", " ", page)


ALPHA = rf"{MINUS}?(30|20|5|2|1|0(\.[47])?)(?!\.?\d)"
SETTINGS = (
    r"ResNet\d+|EfficientNet-lite0|VGG16|CIFAR-10|H200|float32|float64|bfloat16|AVX2|88%|95%|90%",
    r"\b[ABC]\d\b(, [ABC]\d\b)*",  # claims
    rf"from {ALPHA} (to {ALPHA}|on)",
    rf"(alphas?|at|to|above|below|beyond|of) {ALPHA}((,| and) {ALPHA})*",
    r"\b1, 2 and 4/255|28 networks|15 types|with a probability of 80%",
    r"2\.5-fold|2 points|0\.5 points|36 epochs",  # the papers' numbers and the margins
    r"[\d,]+ (random )?(test |validation )?(images|classes|units|steps|layers|predictions|epochs|for map)",
    r"\d+/255|L2 norm|stage 1\b|seeds? 0( (to|and) \d)?|a ratio of 1\b|severity \d",
)
SETTINGS_SECTIONS = (
    "How the CIFAR-10 networks were made and measured",
    "How the Tiny ImageNet networks were made and measured",
    "How the Fashion-MNIST networks were made and measured",
    "Published networks side by side",
)


def test_the_numbers_of_the_definitions_follow_from_the_tables() -> None:
    text = " ".join((ROOT / "definitions.md").read_text().split())
    sweep = table("selectivity").query("variant == 'sweep' and seed < 4")
    mean = {name: by_alpha(sweep, name) for name in ("index", "eta_squared", "auc", "offset_free")}
    floor = by_alpha(sweep, "null_offset_free")
    falls = {name: f"{ratio(name):.1f}-fold" for name in mean}
    assert f"under permuted labels it is {floor[0]:.2f}" in text
    assert (
        f"falls {falls['index']}, eta squared {falls['eta_squared']} and the AUC above 0.5" in text
    )
    assert f"{falls['auc']}; the offset-free index falls {falls['offset_free']}" in text
    assert mean["offset_free"][-2] < floor[-2]
    assert mean["index"][1] > mean["index"][0]
    assert mean["eta_squared"][1] < mean["eta_squared"][0]
    assert mean["auc"][1] < mean["auc"][0]


def test_no_number_in_the_text_is_unchecked(page: str) -> None:
    text = re.sub(
        r"```.*?```|<!--.*?-->|`[^`]*`|\]\([^)]*\)|^[|!].*?$", " ", page, flags=re.S | re.M
    )
    unchecked = []
    for section in re.split(r"^#+ ", text, flags=re.M):
        if section.startswith(SETTINGS_SECTIONS):
            continue  # what was run
        prose = " ".join(section.split())
        for sentence in SENTENCES:
            prose = prose.replace(" ".join(re.sub(r"`[^`]*`", " ", sentence).split()), "")
        for pattern in SETTINGS:
            prose = re.sub(pattern, "", prose, flags=re.I)
        unchecked += re.findall(r".{0,40}\d.{0,30}", prose)
    assert not unchecked


def test_the_claims_about_fashion_mnist_follow_from_the_stored_numbers(page: str) -> None:
    script = runpy.run_path(str(FOLDER.parent / "tables.py"))
    found = script["judged"](FOLDER.parent)
    stored = pd.read_csv(FOLDER.parent / "claims.csv")
    assert found["claim"].tolist() == stored["claim"].tolist()
    assert found["agrees"].tolist() == stored["agrees"].tolist()
    for example, rows in found.groupby("example"):
        assert script["markdown"](str(example), rows) in page


def test_the_table_of_published_networks_follows_from_the_stored_numbers(page: str) -> None:
    for name in (
        "tf_efficientnet_lite0-package",
        "tf_efficientnet_lite0-random",
        "resnet18-random",
    ):
        layers = pd.read_csv(FOLDER.parent / "timm_zoo" / f"layers-{name}.csv")
        index, ratio, cv = (layers[column] for column in layers.columns[1:4])
        row = (
            f"| {index.mean():.3f}, from {index.iloc[0]:.3f} to {index.iloc[-1]:.3f} | {ratio.mean():.3f} | "
            f"{cv.iloc[0]:.3f} to {cv.iloc[-1]:.3f} |"
        )
        assert row in page


def test_a_unit_serves_its_preferred_class() -> None:
    mean = table("ablated").groupby(["alpha", "layer"]).mean(numeric_only=True)
    assert (mean["own"] > 1.9 * mean["others"]).all()
    last = mean.xs("layer3.2.relu2", level="layer")
    assert (last["others"].abs() < 0.1 * last["own"]).all()
    assert (last["index_with_own"].loc[:0] > 0.5).all()
    assert (last["index_with_others"].loc[:0] < -0.3).all()
    assert (mean.xs(1, level="alpha")["index_with_own"] < -0.4).all()


def test_training_makes_measures_agree_in_middle_and_late_layers() -> None:
    part = table("agreement").query("first == 'index' and second != 'per_element' and alpha == 0")
    mean = part.groupby(["variant", "depth", "second"])[["correlation", "ceiling"]].mean()
    depths = ["early", "middle", "late"]
    for trained, random, sign in (
        ("resnet20-published", "random", 1),
        ("vit-trained", "vit-random", 1),
        ("efficientnet-lite0-package", "efficientnet-lite0-random", -1),
        ("convnext-trained", "convnext-random", -1),
    ):
        own, found = mean.loc[trained], mean["correlation"]
        assert (own["correlation"] < own["ceiling"]).all()
        gain = (found[trained] - found[random]).drop("offset_free", level="second")
        if trained == "convnext-trained":
            assert (gain[["middle", "late"]] < -0.2).all()
        else:
            assert (gain[["middle", "late"]] > 0.1).all()
            assert (gain["early"] < 0.1).all()
        along = own["correlation"].xs("eta_squared", level="second")[depths]
        assert (sign * np.diff(along) > 0).all()


def test_the_searches_converged_and_the_constants_changed_no_prediction() -> None:
    searched = table("selectivity").dropna(subset=["rotation"])
    assert len(searched) == 12
    assert searched["rotation_converged"].all()
    assert table("bases")["converged"].all()
    constants = table("constants")
    assert (constants["predictions_changed"] == 0).all()
    low = (
        table("selectivity").query("variant == 'sweep' and alpha == -2").set_index("seed")["index"]
    )
    np.testing.assert_allclose(constants.set_index("seed")["index"], low, rtol=1e-3)


def test_measures_of_a_recording_equal_those_of_the_library() -> None:
    script = runpy.run_path(str(FOLDER / "selectivity.py"))
    draw = np.random.default_rng(0)
    labels = np.arange(200) % 10
    values = draw.random((200, 5)) + draw.random((10, 5))[labels]
    before, after = (script["by_unit"](one, labels) for one in (values, values + 3))
    assert (after["index"] < before["index"] / 2).all()
    for name in ("offset_free", "eta_squared", "auc"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    first = [values[labels == label, 0].mean() for label in range(10)]
    rest = (sum(first) - max(first)) / 9
    assert before["index"][0] == pytest.approx((max(first) - rest) / (max(first) + rest), abs=1e-5)


def test_tables_of_single_units_by_hand(tmp_path: Path) -> None:
    script = runpy.run_path(str(FOLDER / "selectivity.py"))
    draw, labels = np.random.default_rng(0), np.arange(40) % 10
    pooled = draw.random((40, 12)) + draw.random((10, 12))[labels]
    np.savez(tmp_path / "a0_s0.record.npz", layer=["x", "y", "z"], units=[4, 4, 4], pooled=pooled)
    kept = draw.random((2, 12))
    np.savez(tmp_path / "a0_s0.corrupted.npz", stability=kept)
    changed = draw.random(
        (5, 2, 10)
    )  # nothing and each of four units held: accuracy and loss by class
    np.savez(tmp_path / "a0_s0.ablated.npz", y=changed)
    means = np.stack([pooled[labels == label].mean(0) for label in range(10)])
    highest = means.max(0)
    rest = (means.sum(0) - highest) / 9
    index = (highest - rest) / (highest + rest)
    rows = script["stability"](tmp_path, "a0_s0", labels)
    for row, own in zip(rows, (slice(0, 4), slice(4, 8), slice(8, 12)), strict=True):
        mean = kept.mean(0)[own]
        assert row["stability"] == pytest.approx(mean.mean())
        assert row["with_index"] == pytest.approx(stats.spearmanr(index[own], mean).statistic)
    (row,) = script["ablated"](tmp_path, "a0_s0", labels)
    rise = [changed[1 + unit, 1] - changed[0, 1] for unit in range(4)]
    best = [int(means[:, 4 + unit].argmax()) for unit in range(4)]
    own = [one[label] for one, label in zip(rise, best, strict=True)]
    others = [np.delete(one, label).mean() for one, label in zip(rise, best, strict=True)]
    assert (row["own"], row["others"]) == pytest.approx((np.mean(own), np.mean(others)))
    assert row["index_with_others"] == pytest.approx(stats.spearmanr(index[4:8], others).statistic)
