"""What the columns of a comparison hold, in words."""

from renorm.report.comparison import Comparison
from renorm.report.wording import title


def legend(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """(column, what it holds) for the columns that have something to hold."""
    subject, baseline = title(comparison.subject), title(comparison.baseline)
    unit = ", in %" if comparison.unit.percent else ""
    found = [(comparison.unit.metric, f"after training, in eval mode{unit}.")]
    if comparison.differences:
        found.append(("lead", f"of {subject} over the row's, paired by seed."))
    if comparison.gapped:
        text = (
            "test batches put together like the training batches, in train mode, by their own "
            "statistics, less the same in eval mode."
        )
        found.append(("gap", text))
    if comparison.timed:
        found.append(("time", f"of a step, {baseline} = 1."))
    if comparison.lrs_differ:
        found.append(("lr", "learning rate."))
    found.append(("±", "Student's 95 % interval over seeds."))
    return tuple(found)
