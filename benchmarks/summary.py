"""The results of the benchmarks as one markdown table, and what follows from them for all of MVTec AD."""

import shlex
from typing import NamedTuple

import measure

from dmdd_lite.config import MVTEC_CATEGORIES, published_iterations

TEST_IMAGES = 1725  # of MVTec AD's fifteen categories


class Row(NamedTuple):
    """A line of the table; ratio: how many times faster than the baseline."""

    what: str
    value: str
    goal: str = ""
    baseline: str = ""
    ratio: str = ""


def summary(results: dict[str, dict]) -> str:
    """Markdown of the results by name of the step; a step that is not there has no lines."""
    makers = {
        "training_step": training,
        "inference": inference,
        "synthesis": synthesis,
        "metrics": metrics,
        "scaling": scaling,
        "whole_run": whole_run,
    }
    rows = []
    for name, result in results.items():
        rows += next(make for start, make in makers.items() if name.startswith(start))(result)
    trained = [result for name, result in results.items() if name.startswith("training_step")]
    if trained and "inference" in results:
        rows.append(mvtec(trained, results["inference"]))
    lines = ["| what | value | goal | baseline | times the baseline's speed |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return f"{machines(results)}\n\n" + "\n".join(lines) + "\n"


def machines(results: dict[str, dict]) -> str:
    """Device, threads and torch of the results, as many as there are."""
    found = {
        f"{r['device']}, {r['threads']} threads, torch {r['versions']['torch']}" for r in results.values()
    }
    return "; ".join(sorted(found))


def judged(value: float, goals: dict, name: str, least: bool = True) -> str:
    """'at least 30: reached' (x: times the baseline or floor), or nothing where there is no such goal."""
    if name not in goals:
        return ""
    reached = value >= goals[name] if least else value <= goals[name]
    unit = " x" if name.startswith("times") else ""
    return f"{'at least' if least else 'at most'} {goals[name]}{unit}: {'reached' if reached else 'missed'}"


def training(result: dict) -> list[Row]:
    """Every configuration's speed, then its floor and shares, then its memory."""
    rows, goals, first = [], result["goals"], next(iter(result["ways"]))
    for name, found in result["ways"].items():
        what = f"training, {name}"
        if "error" in found:
            rows.append(Row(what, f"failed: {found['error']}"))
            continue
        speed, times = found["iterations_per_second"], found.get("times_first")
        text = f"{speed:.2f} iterations/s, {found['pairs_per_second']:.1f} pairs/s"
        text += "".join(f"; warning: {told}" for told in found["warnings"])
        reached = judged(speed, goals, "iterations_per_second")
        if times and first == "baseline":
            reached = judged(times, goals, "times_baseline")
        rows.append(Row(what, text, reached, *((first, f"{times:.2f}") if times else ())))
        rows += parts(what, found, goals) if "parts" in found else []
        kind = "least_gb" if name.startswith("least") else "gb"
        memory = found["memory"]
        taken = memory.get("reserved_gb", memory.get("process_gb"))
        rows.append(
            Row(f"{what}: memory", measure.memory_text(memory), judged(taken, goals, kind, least=False))
        )
    return rows


def parts(what: str, found: dict, goals: dict) -> list[Row]:
    """How far an iteration is from its floor, and where its time goes."""
    ratio = found["floor"]["ratio_operations"]
    shares = (f"{part} {seconds / found['seconds']:.0%}" for part, seconds in found["parts"].items())
    return [
        Row(f"{what}: times the floor", f"{ratio:.2f}", judged(ratio, goals, "times_floor", least=False)),
        Row(f"{what}: share of the time", ", ".join(shares)),
    ]


def inference(result: dict) -> list[Row]:
    """Latency, throughput and memory at every batch size."""
    (_, ours), *others = result["ways"].items()
    baseline, theirs = others[0] if others else ("", {})
    rows, goals = [], result["goals"]
    for batch, found in ours.items():
        milliseconds, rate = found["milliseconds"], found["images_per_second"]
        against, times = "", ""
        if batch in theirs:
            against = f"{baseline}: {theirs[batch]['milliseconds']:.1f} ms, "
            against += measure.memory_text(theirs[batch]["memory"])
            times = f"{found['times_baseline']:.2f}"
        reached = [
            judged(milliseconds, goals.get("milliseconds", {}), batch, least=False),
            judged(rate, goals.get("images_per_second", {}), batch),
        ]
        text = f"{milliseconds:.1f} ms, {rate:.1f} images/s, {found['times_floor']:.2f} x the floor, "
        text += measure.memory_text(found["memory"])
        what = f"inference, {network(result)}, batch {batch}"
        rows.append(Row(what, text, ", ".join(filter(None, reached)), against, times))
    return rows


def network(result: dict) -> str:
    """The teacher that the command line names."""
    words = shlex.split(result["command"])
    return words[words.index("--teacher") + 1]


def synthesis(result: dict) -> list[Row]:
    """Pairs a second beside every baseline."""
    ways, rows = result["ways"], []
    for name, found in ways.items():
        for baseline, times in found.get("times_faster", {}).items():
            text = f"{found['pairs_per_second']:.1f} pairs/s, {measure.memory_text(found['memory'])}"
            against = f"{baseline}: {ways[baseline]['pairs_per_second']:.1f} pairs/s, "
            against += measure.memory_text(ways[baseline]["memory"])
            goal = judged(times, result["goals"], "times_faster")
            rows.append(Row(f"synthesis, {name}", text, goal, against, f"{times:.1f}"))
    return rows


def metrics(result: dict) -> list[Row]:
    """AUPRO beside its baselines."""
    ours, rows = result["rows"]["aupro"], []
    for name, baseline in result["rows"].items():
        if baseline.get("baseline_of") != "aupro":
            continue
        goal = judged(baseline["times_ours"], result["goals"], "times_faster") if "RD4AD" in name else ""
        text = f"{ours['seconds']:.3f} s, {ours['value']:.6f}, {ours['mb']:.0f} MB"
        against = f"{name}: {baseline['seconds']:.3f} s, {baseline['value']:.6f}, {baseline['mb']:.0f} MB"
        rows.append(Row("AUPRO", text, goal, against, f"{baseline['times_ours']:.1f}"))
    return rows


def scaling(result: dict) -> list[Row]:
    """What an iteration costs at other sizes and batches, in those of the first."""
    rows, first = [], next(iter(result["ways"].values()))
    for name, found in result["ways"].items():
        if "error" in found:
            rows.append(Row(f"iteration, {name}", f"failed: {found['error']}"))
            continue
        times = found["seconds"] / first["seconds"]
        text = f"{1000 * found['seconds']:.1f} ms, {times:.2f} x the first's, "
        text += f"{found['pairs_per_second']:.1f} pairs/s, {measure.memory_text(found['memory'])}"
        rows.append(Row(f"iteration, {name}", text))
    return rows


def whole_run(result: dict) -> list[Row]:
    """Minutes and the fused map's metrics of a training on real images beside another machine's, in percent;
    then what bf16 changes of them."""
    reference, both = result["reference"], result["precision"]
    against = f"{reference['device']}: {quality(reference)}" if reference else ""
    times = f"{reference['minutes'] / result['minutes']:.1f}" if reference else ""
    config, metrics = result["config"], both["metrics"]
    what = f"run of {config['iterations']} iterations of batch {config['batch_size']}, {config['teacher']}"
    changes = (
        f"{name} {100 * (value - metrics['float32'][name]):+.2f}" for name, value in metrics["bf16"].items()
    )
    text = f"maps {both['map_difference']:.4f}, scores {both['score_difference']:.4f} apart at most; "
    text += f"{both['decisions_changed']} of {both['images']} decisions differ; {', '.join(changes)}"
    return [Row(what, quality(result), "", against, times), Row(f"{what}: bf16 less float32", text)]


def quality(result: dict) -> str:
    """Minutes and metrics of the fused map."""
    told = (f"{name} {100 * value:.2f}" for name, value in result["metrics"]["fused"].items())
    return f"{result['minutes']:.1f} minutes; {', '.join(told)}"


def mvtec(trained: list[dict], tested: dict) -> Row:
    """How long all fifteen categories take: the published iterations of the fastest configuration, and the
    test images at the best rate. Reading files, metrics and starting processes come on top."""
    ways = {
        name: found
        for result in trained
        for name, found in result["ways"].items()
        if name != "baseline" and "error" not in found
    }
    name = max(ways, key=lambda name: ways[name]["iterations_per_second"])
    iterations = sum(published_iterations(category) for category in MVTEC_CATEGORIES)
    learning = iterations / ways[name]["iterations_per_second"] / 60
    ours = next(iter(tested["ways"].values()))
    testing = TEST_IMAGES / max(found["images_per_second"] for found in ours.values()) / 60
    goals = measure.goals("mvtec", tested["device"].split(":")[0])
    text = f"{learning + testing:.1f} minutes: {learning:.1f} for {iterations} iterations of batch "
    text += f"{ways[name]['batch']} ({name}), {testing:.2f} for {TEST_IMAGES} images"
    goal = judged(learning + testing, goals, "minutes", least=False)
    return Row("MVTec AD, fifteen categories", text, goal)
