"""The page's style: light or dark as the reader has it, readable without colours, printable."""

STYLE = """
:root{--ground:#fff;--ink:#1b1f24;--faint:#57606a;--line:#d0d7de;--panel:#f6f8fa;
--sent:#1f6feb;--received:#1a7f6b;--dropped:#cf222e;--warn:#9a6700}
@media(prefers-color-scheme:dark){:root{--ground:#0d1117;--ink:#e6edf3;--faint:#9198a1;
--line:#30363d;--panel:#161b22;--sent:#58a6ff;--received:#3fb9a0;--dropped:#ff7b72;--warn:#e3b341}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:72rem;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:0 0 .25rem}
p{margin:.25rem 0 .75rem;color:var(--faint)}
section{border:1px solid var(--line);border-radius:8px;padding:1rem 1.25rem;margin:1rem 0}
.notes{border-color:var(--warn);border-left-width:6px}.notes h2{color:var(--warn)}
ul{margin:.25rem 0;padding-left:1.25rem}
.none{font-style:italic}
svg{width:100%;min-width:40rem;height:auto;display:block;font-size:13px}
svg text{fill:var(--ink)}svg .label{text-anchor:end}svg .value,svg .time{fill:var(--faint)}
svg .grid{stroke:var(--line)}
.sent{fill:var(--sent);background:var(--sent)}
.received{fill:var(--received);background:var(--received)}
.dropped{fill:var(--dropped);background:var(--dropped)}
.legend{margin:.25rem 0}.key{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;
margin:0 .4rem 0 .8rem;vertical-align:-1px}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
caption{text-align:left;color:var(--faint)}
th{text-align:left;font-weight:600}
th,td{padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td{overflow-wrap:break-word}
.number{text-align:right!important;white-space:nowrap;font-variant-numeric:tabular-nums}
.matrix{width:auto}.matrix td,.matrix th{padding:.3rem .5rem;white-space:nowrap}
.matrix td{text-align:right;
background:color-mix(in srgb,var(--sent) calc(var(--strength,0%)*.6),transparent)}
.matrix thead th{writing-mode:vertical-rl;transform:rotate(180deg);font-weight:400}
details{margin-top:.75rem}summary{cursor:pointer;color:var(--faint)}
@media print{details:not([open])>*{display:block}section{break-inside:avoid}}
"""
