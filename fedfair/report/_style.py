"""The page's style sheet, for the screen and for paper."""

STYLE = """
:root { --ink: #1f2328; --muted: #57606a; --line: #d0d7de; --tint: #f6f8fa; --accent: #0b5394; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 40px 32px 64px; max-width: 1120px; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans",
  sans-serif; }
h1 { font-size: 32px; line-height: 1.2; margin: 4px 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 48px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 24px 0 6px; }
p, ul { max-width: 80ch; margin: 8px 0 14px; }
.over { color: var(--muted); font-size: 14px; letter-spacing: .02em; }
.note, caption, figcaption { color: var(--muted); font-size: 14px; line-height: 1.45; }
.banner { margin: 0 0 20px; padding: 12px 18px; border-left: 6px solid #b35900; background: #fff4e5; }
.banner.alarm { border-left-color: #b00020; background: #fdecea; } .banner.alarm strong { color: #b00020; }
.banner strong { letter-spacing: .04em; }
.banner ul { margin: 6px 0 0; padding-left: 20px; }
.verdict { margin: 20px 0; padding: 14px 20px; border-left: 6px solid var(--accent); background: #eef4fb; }
.verdict h3 { margin: 0 0 4px; } .verdict p, .verdict ul { max-width: none; margin-bottom: 12px; }
.verdict p:last-child { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 60%; margin: 10px 0 18px; font-size: 15px; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 6px; }
th, td { padding: 7px 0 7px 22px; text-align: right; vertical-align: baseline; white-space: nowrap; }
th { font-weight: 600; }
thead th { border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
th[scope=row], th.first { text-align: left; } tr > :first-child { padding-left: 0; }
tbody tr { border-bottom: 1px solid var(--line); } tbody tr.inner { border-bottom-color: #eaeef2; }
tr.sum { border-top: 2px solid var(--ink); }
td small, th small { display: block; color: var(--muted); font-size: 13px; font-weight: 400; }
td.none { color: var(--muted); }
td.said { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6em; }
table.stretch { width: 100%; }
figure { margin: 14px 0 24px; } figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; } svg image { image-rendering: pixelated; }
pre { padding: 14px 18px; background: var(--tint); border: 1px solid var(--line); border-radius: 4px;
  font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 24px; margin: 10px 0; font-size: 15px; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media print {
  @page { size: A4; margin: 14mm; }
  body { padding: 0; max-width: none; font-size: 10.5pt; } h1 { font-size: 20pt; } h2 { font-size: 13pt; }
  table { font-size: 9pt; } td small, th small, .note, caption, figcaption { font-size: 8.5pt; }
  th, td { padding-left: 10px; } thead th { white-space: normal; }
  pre { font-size: 8pt; } .scroll { overflow: visible; }
  h2, h3, caption { break-after: avoid; } table, tr, figure, .banner, .verdict { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
