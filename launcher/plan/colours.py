"""What the page adds to the house's style sheet: a colour for each part of memory and of a step, in light and dark."""

STYLE = """
:root{--wait:#cfd3da}@media (prefers-color-scheme:dark){:root{--wait:#3b424e}}
.m-weights{fill:var(--c0);background:var(--c0)}.m-gradients{fill:var(--c1);background:var(--c1)}
.m-optimizer{fill:var(--c2);background:var(--c2)}.m-activations{fill:var(--c3);background:var(--c3)}
.m-logits{fill:var(--c4);background:var(--c4)}.m-buffers{fill:var(--c5);background:var(--c5)}
.t-forward{fill:var(--c0);background:var(--c0)}.t-backward{fill:var(--c2);background:var(--c2)}
.t-recompute{fill:var(--c3);background:var(--c3)}.t-tensor{fill:var(--c4);background:var(--c4)}
.t-handover{fill:var(--c5);background:var(--c5)}.t-bubble{fill:var(--wait);background:var(--wait)}
.t-loss{fill:var(--c6);background:var(--c6)}.t-data{fill:var(--c1);background:var(--c1)}
.t-optimizer{fill:var(--c7);background:var(--c7)}
.plan{height:auto;overflow:visible;margin-top:10px}
figure:has(.plan){overflow-x:auto}.plan{min-width:760px}
@media (max-width:820px){.meaning{display:none}}
.plan text{font-size:12px;fill:var(--muted);font-family:inherit}
.plan .on{fill:#0c0d10;font-size:11px;text-anchor:middle}
.plan .part{stroke:var(--paper);stroke-width:.75}.plan .limit{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:5 3}
.plan .reserve{fill:var(--wait);opacity:.45}
.plan .said{fill:var(--ink)}.plan .grid{stroke:var(--rule);fill:none}
.plan .tear{stroke:var(--muted);fill:none;stroke-dasharray:2 3}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;padding:0;margin:10px 0 0;font-size:13px}
.legend b{font-weight:600}.legend .swatch{margin-right:6px}
.layouts td,.layouts th{padding-right:10px;white-space:nowrap}
.layouts .why td{white-space:normal;padding-top:0;color:var(--muted);font-size:13px}
.layouts .one>*{border-bottom:0;padding-bottom:0}
.layouts .why code{display:block}.layouts .why span{white-space:nowrap}
code{font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.said-of td{text-align:left}.said-of th{width:150px;vertical-align:top;color:var(--muted)}
.sources{font-size:13px;color:var(--muted);padding-left:18px}
"""
