"""Draws docs/images/analyze.svg: what `probekit analyze` prints on its default."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

import probekit as pk
from probekit.models.loading import DEFAULT_MODEL
from probekit.reports.terminal import print_result

model = pk.load_model(DEFAULT_MODEL)
result = pk.analyze(model, pk.load_data("fashion-mnist", model))
terminal = Console(record=True, width=84)
terminal.print(Text("$ probekit analyze -o result.nc"))
print_result(result, terminal)
picture = terminal.export_svg(title="probekit")
start, end = picture.index("@font-face"), picture.rindex("@font-face")
fonts_end = picture.index("}", end) + 1
Path(__file__).with_suffix(".svg").write_text(picture[:start] + picture[fonts_end:])
