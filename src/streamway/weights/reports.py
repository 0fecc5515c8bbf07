"""The report of a conversion, for a terminal."""

from streamway.weights.convert import ConvertedWeights
from streamway.weights.wording import show_size


def report_lines(converted: ConvertedWeights) -> list[str]:
    """Render what a conversion did and proved, as lines of text."""
    report = converted.report
    done = "converted" if converted.converted else "realigned" if converted.realigned else "passed through"
    lines = [
        f"Weights   {converted.uri}",
        f"Source    {report.get('format', 'published release')}, {done}",
        f"Tensors   {converted.tensors:,} stored, {show_size(converted.tensor_bytes)}",
        f"Moved     {show_size(converted.moved_bytes)}",
    ]
    lines += [
        f"Shard     {shard['path']}  {shard['tensors']:,} tensors  {show_size(shard['size_bytes'])}"
        for shard in report.get("shards", ())
    ]
    lines += [f"Tied      {dropped} is {kept}" for dropped, kept in converted.aliases.items()]
    lines += [
        f"Twice     {name}: config.json says that the model does not tie it" for name in report.get("stored_twice", ())
    ]
    lines += [f"Left      {entry['path']}: {entry['reason']}" for entry in report.get("left_behind", ())]
    lines += [f"Note      {note}" for note in report.get("notes", ())]
    proof = report.get("proof")
    if proof:
        compared = (
            f"{proof['tensors_compared']:,} tensors, {show_size(proof['bytes_compared'])}: "
            if proof["tensors_compared"]
            else ""
        )
        lines.append(f"Proof     {compared}{proof['method']}")
    return lines
