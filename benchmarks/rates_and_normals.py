"""Kinds of normals, moving rates and group sizes on many worlds: runs a plan, and collects what it has given.

    python benchmarks/rates_and_normals.py run PLAN --folder FOLDER
    python benchmarks/rates_and_normals.py collect PLAN --folder FOLDER --to FILE.json.gz

The protocols are docs/experiments/rates-and-normals.md and dose-and-weight.md. A plan, as in
benchmarks/rates-and-normals/*.yaml, has a base model that has read other authors, worlds (seeds of the built-in authors
and of the runs; with `by_world` the settings of a world's data, of another kind), retained models and recipes by stage.
All models of a world start from the base. A recipe with `replays` takes the λ of another one's steps; `rate_scale`
multiplies the recipes' learning rates. Runs are ordinary `sga fit`s, one after the other in this process; what is
finished is reused, so that the command can be given again, and by several processes at once.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

from hand_over import NAME_OR_PATH, REPLAYED, Patient, collected, made, plan_of

from sga.experiments.engine import run
from sga.experiments.task import Task

TARGET = ["benchmarks/authors", "methods/target", "pairs/authors/target"]
RATE = "model.optimizer.lr"
STARTED = {"model.language_model": {"class_path": "sga.Pretrained", "init_args": {"name_or_path": "base"}}}


def read_plan(path: Path) -> list[Task]:
    """All tasks of a plan: of each stage world by world, and in each world first what its recipes need."""
    plan = plan_of(path)
    common, training = plan["common"], plan["training"]
    source = {"data.source.init_args": {**common["data.source.init_args"], **plan["base"]["source"]}}
    base = made("base", TARGET, {**common, **plan["base"]["settings"], **source})
    found: list[Task] = []
    for stage in plan["stages"]:
        for world in stage["worlds"]:
            own = plan["by_world"][world] if "by_world" in plan else {"data.source.init_args.seed": world}
            seeds = {**common, **own, "seed_everything": world}
            trained = {**seeds, **STARTED, **training}
            settings = {**trained, "trainer.limit_val_batches": 0, **plan.get("target", {})}
            target = made(f"{world}/target", TARGET, settings, {NAME_OR_PATH: base})
            found.append(target)
            for number in plan["retained"]:
                seed = 1000 * world + number
                settings = {**trained, **plan["unkept"], **plan.get("retain", {}), "seed_everything": seed}
                files = ["benchmarks/authors", "methods/retain", "pairs/authors/retain"]
                found.append(made(f"{world}/retained-{number}", files, settings, {NAME_OR_PATH: base}))
            runs: dict[str, Task] = {}
            for name in stage["recipes"]:
                recipe = plan["recipes"][name]
                settings = {**seeds, **plan["rule"], **plan["unlearning"], **plan["unkept"], **recipe["settings"]}
                if "rate_scale" in plan:
                    settings[RATE] *= plan["rate_scale"]
                needs = {NAME_OR_PATH: target}
                if "replays" in recipe:
                    needs[REPLAYED] = runs[recipe["replays"]]
                    settings["model.loss.normal_weight.seed"] = world
                files = ["benchmarks/authors", f"methods/{recipe.get('method', 'gd')}"]
                runs[name] = made(f"{world}/{name}", files, settings, needs)
            found += runs.values()
    return list({one.key: one for one in found}.values())


def main() -> None:
    """Runs a plan, or collects what it has given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "collect"))
    parser.add_argument("plan", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="file that is collected into")
    options = parser.parse_args()
    tasks = read_plan(options.plan)
    if options.verb == "run":
        run(tasks, options.folder, Patient(lambda line: None), retry=False)
        return
    found = collected([one for one in tasks if one.name != "base" and not one.name.endswith("/target")], options.folder)
    found["runs"] = {name.replace("/retained-", "/judged-"): one for name, one in found["runs"].items()}
    with gzip.open(options.to, "wt", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
