"""The pages' style sheet, for light and dark."""

SHEET = """
:root{color-scheme:light dark;
--paper:#fcfcfa;--panel:#fff;--ink:#1a1d23;--muted:#5c6370;--rule:#e2e4e8;--track:#eef0f3;--link:#1d56b4;
--documents:#3b74c8;--bytes:#1c9484;--was-d:#dce7f7;--was-b:#d5efea;--warn:#8a4b00;--warn-paper:#fff4dc;--warn-line:#e3a530;
--less:#b3372b;--kept-mark:#d3f0dc;--dropped-mark:#fbdcd5;
--c0:#3b74c8;--c1:#e2703a;--c2:#1ea38b;--c3:#d9a514;--c4:#7d62cf;--c5:#d4679a;--c6:#5f9130;--c7:#c2443d}
@media (prefers-color-scheme:dark){:root{
--paper:#14161a;--panel:#1b1e24;--ink:#e7e9ed;--muted:#9ba3b0;--rule:#2e333c;--track:#272b33;--link:#8ab6ff;
--documents:#5b91e0;--bytes:#2fa896;--was-d:#243349;--was-b:#1c3a37;--warn:#ffcf7d;--warn-paper:#33270f;--warn-line:#b37f1a;
--less:#ff9b8a;--kept-mark:#1d4a2e;--dropped-mark:#5a2a22;
--c0:#5b91e0;--c1:#e4814f;--c2:#30ab94;--c3:#cfa52e;--c4:#967fdc;--c5:#d67ba5;--c6:#77a84a;--c7:#d3645c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",sans-serif;
font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 28px}
header{padding-top:36px}
footer{color:var(--muted);font-size:13px;padding-top:28px;padding-bottom:40px}
a{color:var(--link);text-underline-offset:2px}
a:focus-visible,summary:focus-visible,[tabindex]:focus-visible{outline:2px solid var(--link);outline-offset:2px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;margin:4px 0 0;overflow-wrap:anywhere}
h2{font-size:20px;line-height:1.3;letter-spacing:-.01em;margin:0 0 6px}
h3{font-size:15px;line-height:1.4;margin:0 0 2px;overflow-wrap:anywhere}
p{margin:0 0 12px;max-width:78ch}
small{font-size:12px;color:var(--muted)}
.eyebrow,.eyebrow a{color:var(--muted);font-size:13px}
section{margin-top:44px}
.lead,.note,.empty{color:var(--muted)}
.empty{font-style:italic}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;padding:0;margin:10px 0 0;font-size:14px}
.facts{display:flex;flex-wrap:wrap;gap:2px 26px;margin:10px 0 0;color:var(--muted);font-size:14px}
.facts div{display:flex;gap:6px}.facts dd{margin:0;color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(155px,1fr));gap:12px;margin:22px 0 0}
.tiles>div,.card{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px 16px}
.tiles dt{color:var(--muted);font-size:13px}
.tiles dd{margin:0}.tiles .value{font-size:20px;font-weight:600;letter-spacing:-.01em;line-height:1.3}
.tiles .under{font-size:13px;color:var(--muted)}
.warning{background:var(--warn-paper);color:var(--warn);border-left:4px solid var(--warn-line);border-radius:4px;
padding:10px 16px;margin:18px 0;max-width:none}
.warning p{margin:0;max-width:none}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:18px;align-items:start}
.card{padding:14px 16px 12px;min-width:0}
figure+.scroll{margin-top:14px}.note{margin-top:12px}.reasons .wide{width:30%}
.halves{display:grid;grid-template-columns:1fr 1fr;gap:14px}.halves :first-child{text-align:right}
.halves span{font-weight:600}.halves .d{color:var(--documents)}.halves .b{color:var(--bytes)}
.card h3{font-size:16px}
.card .lead{font-size:13px;margin-bottom:8px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
caption,.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
th,td{padding:6px 12px 6px 0;text-align:left;vertical-align:middle;border-bottom:1px solid var(--rule);font-weight:400}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-size:12.5px;vertical-align:bottom}
tbody th{font-weight:500;overflow-wrap:break-word}.mix th{white-space:nowrap}.mix .epochs{width:15%;min-width:70px}
tfoot th,tfoot td{border-bottom:0;font-weight:600}
.number{text-align:right;white-space:nowrap}
.number small{display:block;line-height:1.25}
.lost{color:var(--less)}.none{color:var(--muted)}.lost small{color:inherit;opacity:.85}
td.over{color:var(--warn);font-weight:600;font-size:inherit}
.wide{width:38%;min-width:90px}
svg{display:block;width:100%}
.bar{height:12px;border-radius:2px}
.track{fill:var(--track)}.documents{fill:var(--documents)}.bytes{fill:var(--bytes)}.mark{fill:var(--ink);opacity:.55}
.warm{fill:var(--warn-line)}.less{fill:var(--less);opacity:.75}.was{stroke:none}.documents.was{fill:var(--was-d)}.bytes.was{fill:var(--was-b)}
.compact tbody th{width:30%}.compact th,.compact td{padding:1px 10px 1px 0;border:0;font-size:13px}
.compact thead th{font-size:12px}
.compact th:last-child,.compact td:last-child{padding-right:0}.compact .bar{height:9px}
.funnel tbody th,.funnel tbody td{padding-top:0;padding-bottom:0;height:44px}
.funnel .silhouette{width:34%;min-width:130px;padding-left:10px;padding-right:10px;text-align:center}
.funnel tbody .silhouette{border:0}.funnel .silhouette svg{height:45px}
.funnel .axis{stroke:var(--panel);stroke-width:2;vector-effect:non-scaling-stroke}
.chart{height:auto;max-width:560px;overflow:visible;margin-top:6px}.stretched{max-width:none}
.stretched rect{stroke:var(--paper);stroke-width:1.5;vector-effect:non-scaling-stroke}
.chart text{font-size:12px;fill:var(--muted);font-family:inherit}
.chart .name{font-size:12px}.chart .big{font-size:18px;font-weight:600;fill:var(--ink)}
.chart .segment{font-size:13px;fill:var(--ink)}
.chart .halo{fill:var(--ink);paint-order:stroke;stroke:var(--panel);stroke-width:3px}
.chart .grid{stroke:var(--rule);fill:none;stroke-width:1}.chart .axis{stroke:var(--muted);stroke-width:1;fill:none}
.chart .median{stroke:var(--ink);stroke-width:1.25;stroke-dasharray:4 3;fill:none}
.area{fill:var(--documents);opacity:.13}.curve{fill:none;stroke:var(--documents);stroke-width:2.25;stroke-linejoin:round}
.diagonal{fill:none;stroke:var(--muted);stroke-dasharray:4 4}
.band{opacity:.22}
.colour-0{fill:var(--c0);background:var(--c0)}.colour-1{fill:var(--c1);background:var(--c1)}
.colour-2{fill:var(--c2);background:var(--c2)}.colour-3{fill:var(--c3);background:var(--c3)}
.colour-4{fill:var(--c4);background:var(--c4)}.colour-5{fill:var(--c5);background:var(--c5)}
.colour-6{fill:var(--c6);background:var(--c6)}.colour-7{fill:var(--c7);background:var(--c7)}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:8px}
summary{cursor:pointer;color:var(--link);font-size:13px;width:fit-content}
.reasons tbody tr:first-child th,.reasons tbody tr:first-child td{border-bottom:0;padding-bottom:0}
.reasons tr.more td{padding-top:0;padding-bottom:8px}
.stage{color:var(--muted)}
.excerpts{list-style:none;padding:0;margin:8px 0 4px;
display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}
.excerpt{border:1px solid var(--rule);border-radius:6px;background:var(--panel);min-width:0}
.source{display:block;font-size:12px;color:var(--muted);padding:5px 10px;border-bottom:1px solid var(--rule);
overflow-wrap:anywhere;font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
.text{margin:0;padding:8px 10px;font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere;
overflow:auto;max-height:21em;unicode-bidi:plaintext}
.pair{margin:0 0 16px}
.pair h3{font-weight:500;margin-bottom:6px}
.pair .excerpts{margin:0}
mark{color:inherit;border-radius:2px;padding:0 1px}
.kept mark{background:var(--kept-mark)}.dropped mark{background:var(--dropped-mark)}
figure{margin:0}.narrow{max-width:600px}
.two{display:grid;grid-template-columns:minmax(0,360px) minmax(0,1fr);gap:36px;align-items:start}
@media (max-width:1119px){.six{grid-template-columns:repeat(3,minmax(0,1fr))}}
@media (max-width:820px){main,header,footer{padding-left:16px;padding-right:16px}
.grid,.two,.excerpts{grid-template-columns:minmax(0,1fr)}
.tiles,.six{grid-template-columns:repeat(2,minmax(0,1fr))}
th,td{padding-right:8px}.funnel .silhouette{min-width:90px}}
@media print{.scroll{overflow:visible}.text{max-height:none}}
"""
