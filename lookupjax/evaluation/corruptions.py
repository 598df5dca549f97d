"""ImageNet-C (arXiv 1903.12261): error under 15 corruptions at 5 severities, and mCE.

{"type": "corruptions", "data": {"name": "imagenet_c"}}    the prepared benchmark
{"type": "corruptions", "on_the_fly": True}                the evaluation split, corrupted as it is read
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lookupjax.data.corruptions import BENCHMARK, check_corruption
from lookupjax.errors import UserError
from lookupjax.evaluation.classification import judge_for
from lookupjax.evaluation.context import Context, call_name
from lookupjax.evaluation.metrics import corruption_errors


class Evaluator:
    """Per call and head: "error/<corruption>" (mean over severities), "ce/<corruption>" and "mce" (percent of
    AlexNet's errors), "mean_accuracy" over all corruptions and severities.

    CE and mCE compare with AlexNet on ImageNet and mean nothing on other data.

    Args:
      split: of the clean images that are corrupted; default: `config.data.eval_split`.
      data: changes to `config.data`; with the benchmark the splits are "<corruption>_<severity>".
      on_the_fly: corrupt clean images instead of reading corrupted ones.
      corruptions: default: the 15 of mCE; the four more have no CE.
      severities: of 1 to 5.
      stored: on the fly: compress as the benchmark is stored (JPEG of quality 85).
      frost: on the fly: the directory of the frost photographs.
    """

    def __init__(
        self,
        context: Context,
        *,
        split: str = "",
        data: Mapping[str, Any] | None = None,
        on_the_fly: bool = False,
        corruptions: Sequence[str] = BENCHMARK,
        severities: Sequence[int] = (1, 2, 3, 4, 5),
        stored: bool = True,
        frost: str = "",
    ):
        for name in corruptions:
            check_corruption(name)
        if not corruptions or not set(severities) <= set(range(1, 6)) or not severities:
            raise UserError("corruptions and severities must not be empty, and severities are 1 to 5")
        changes = dict(data or {}) if on_the_fly else {"name": "imagenet_c"} | dict(data or {})
        self.context, self.judge = context, judge_for(context, changes)
        transforms = tuple(context.data_config(changes).eval_transforms)
        self.parts = {}
        for name in corruptions:
            for severity in severities:
                if on_the_fly:
                    extra = dict(corruption=name, severity=severity, stored=stored, frost=frost)
                    part = changes | {"eval_transforms": insert(transforms, extra), "cache": False}
                    self.parts[name, severity] = context.batches(split, part)
                else:
                    self.parts[name, severity] = context.batches(f"{name}_{severity}", changes)

    def run(self, params: Any, stats: Any) -> dict[str, dict[str, float]]:
        results = {}
        for call in self.context.calls:
            errors: dict[str, dict[str, dict[int, float]]] = {}  # of each head, corruption, severity
            for (name, severity), batches in self.parts.items():
                columns = self.context.collect(self.judge, params, stats, batches, call)
                for column, values in columns.items():
                    if column.endswith("accuracy"):
                        by_name = errors.setdefault(column.removesuffix("accuracy"), {})
                        by_name.setdefault(name, {})[severity] = 1.0 - float(values.mean(dtype="float64"))
            figures: dict[str, float] = {}
            for head, table in errors.items():
                figures |= {f"{head}{name}": value for name, value in summary(table).items()}
            results[call_name(call)] = figures | {"examples": len(next(iter(columns.values())))}
        return results


def summary(errors: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """The figures of one head from its top-1 errors {corruption: {severity: error}}."""
    means = {name: sum(row.values()) / len(row) for name, row in errors.items()}
    ces = corruption_errors(errors) if all(len(row) == 5 for row in errors.values()) else {}
    accuracy = {"mean_accuracy": 1.0 - sum(means.values()) / len(means)}
    return accuracy | ces | {f"error/{name}": error for name, error in means.items()}


def insert(transforms: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The evaluation's transforms with the corruption before "normalize", where pixels are still bytes.

    Raises:
      UserError: when there is no "normalize".
    """
    names = [transform["name"] for transform in transforms]
    if "normalize" not in names:
        raise UserError(f'corruptions go before "normalize", which is not among the eval_transforms {names}')
    place = names.index("normalize")
    corrupt = {"name": "lookupjax.data.corruptions:Corrupt", **options}
    return (*(dict(t) for t in transforms[:place]), corrupt, *(dict(t) for t in transforms[place:]))
