"""Style and script of the ledger's page; `render_page` substitutes GUTTER, GAP and INDENT."""

CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d7dbe0;--wire:#6b7682;
--link:#0b57a4;--net:#3f4a5a;--rnn:#8446b0;--att:#bd2f69;--con:#2b6cb0;--den:#b4531a;--nor:#647a1e;
--poo:#0d8074;--emb:#8f6f00;--ops:#7a828c;--rest:#868f99;--m0:#173f66;--m1:#35699c;--m2:#5f95c4;--m3:#a34a12;--m4:#cd7430}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1c2026;--ink:#e8eaed;--soft:#a5adb8;--line:#353b44;
--wire:#8b95a1;--link:#8ab8f0;--net:#aab6c8;--rnn:#c595e6;--att:#f27fac;--con:#6ea8e8;--den:#f0975a;
--nor:#b3c75e;--poo:#4fc4b5;--emb:#dcb93c;--ops:#8f98a4;--rest:#6c7580;--m0:#a9cdf2;--m1:#6fa3d8;--m2:#477bb3;
--m3:#f2ab78;--m4:#c9743a}}
*{box-sizing:border-box}
html{scroll-padding-top:3.5rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.5rem 4rem;isolation:isolate}
h1,h2,p,dl,dd,ul,ol,figure{margin:0;padding:0}
ul,ol{list-style:none}
h1{font-size:2.4rem;line-height:1.15;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.75rem 0 .6rem;letter-spacing:-.01em}
p{max-width:46rem;color:var(--soft);margin-bottom:.75rem}
a{color:var(--link)}
small{font-size:.8125rem;color:var(--soft);font-weight:400}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.over{text-transform:uppercase;letter-spacing:.09em;font-size:.8125rem;margin-bottom:.25rem}
.totals{display:grid;grid-template-columns:repeat(4,1fr);gap:1px;margin:1.5rem 0 1rem;background:var(--line);
border:1px solid var(--line);border-radius:10px;overflow:hidden}
.totals div{background:var(--card);padding:.9rem 1.1rem}
.totals dt,.totals span{color:var(--soft);font-size:.875rem;display:block}
.totals b{font-size:1.55rem;line-height:1.3;letter-spacing:-.015em;white-space:nowrap}
.stack{display:flex;gap:2px;height:1.9rem;border-radius:6px;overflow:hidden;margin-bottom:.9rem}
.stack i{background:var(--c);min-width:3px;flex-basis:0}
.parts{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:.3rem 2.5rem}
.parts li{display:flex;gap:.6rem;align-items:baseline}
.parts .what{flex:1;overflow-wrap:anywhere}
.parts b{white-space:nowrap;font-weight:600}
.explained{grid-template-columns:minmax(0,46rem)}
.explained .what{display:grid;grid-template-columns:7rem 1fr;align-items:baseline}
.key{width:.8rem;height:.8rem;border-radius:3px;background:var(--c);flex:none;display:inline-block}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.4rem;font-size:.875rem;margin:1rem 0}
.legend .key{margin-right:.45rem;vertical-align:-.06em}
.net{--c:var(--net)}.rnn{--c:var(--rnn)}.att{--c:var(--att)}.con{--c:var(--con)}.den{--c:var(--den)}
.nor{--c:var(--nor)}.poo{--c:var(--poo)}.emb{--c:var(--emb)}.ops{--c:var(--ops)}.rest{--c:var(--rest)}
.m0{--c:var(--m0)}.m1{--c:var(--m1)}.m2{--c:var(--m2)}.m3{--c:var(--m3)}.m4{--c:var(--m4)}
.tools{position:sticky;top:0;z-index:1;background:var(--bg);padding:.6rem 0;margin:.4rem 0;display:flex;
flex-wrap:wrap;gap:.6rem;align-items:center;font-size:.875rem}
.tools[hidden]{display:none}
.tools span{flex:1}
.tools input,.tools button{font:inherit;color:inherit;background:var(--card);border:1px solid var(--wire);
border-radius:6px;padding:.35rem .7rem}
.tools input{width:13rem;margin-left:.3rem}
.tools button{cursor:pointer}
.tools button:hover{border-color:var(--link);color:var(--link)}
.tools output{color:var(--soft)}
.heads,.face{display:grid;grid-template-columns:60px minmax(9rem,2fr) minmax(6rem,1fr) minmax(8rem,1.2fr) 8.5rem;
gap:0 1rem;align-items:center;padding:0 2.2rem 0 .5rem}
.heads{margin-left:calc(var(--left) + 3px);font-size:.8125rem;color:var(--soft)}
.heads span:nth-child(4){text-align:right}
.rows,.heads{--u:1;--d:0;--gap:GAPpx;--gutter:calc(GUTTERpx*var(--u));--step:calc(INDENTpx*var(--u));
--left:calc(var(--gutter) + var(--d)*var(--step))}
.rows ol,.rows ul{--left:calc(var(--gutter) + var(--d)*var(--step))}
.row{position:relative;padding-top:var(--gap)}
.row[hidden]{display:none}
.after::before,.after::after{content:"";position:absolute;left:calc(var(--left) + 41px)}
.after::before{top:1px;height:calc(var(--gap) - 5px);border-left:2px solid var(--wire);margin-left:-1px}
.after::after{top:calc(var(--gap) - 8px);border:5px solid transparent;border-top:7px solid var(--wire);
border-bottom:0;margin-left:-5px}
.wires{position:absolute;top:0;left:0;height:100%;overflow:hidden;transform:scaleX(var(--u));transform-origin:left;
pointer-events:none}
.wires path{fill:none;stroke:var(--wire);stroke-width:1.6;vector-effect:non-scaling-stroke}
.wires .head{fill:var(--wire);stroke:none}
.group>summary>.wires{top:calc(-1*var(--gap));height:calc(100% + var(--gap))}
.group[open]>summary .shut,.group:not([open])>summary .open{display:none}
.box,.group>summary>.face{margin-left:var(--left);background:var(--card);border:1px solid var(--line);
border-left:4px solid var(--c);border-radius:8px}
summary{cursor:pointer;list-style:none;position:relative}
summary::-webkit-details-marker{display:none}
.face{position:relative;min-height:52px;padding-top:.25rem;padding-bottom:.25rem;border-radius:6px}
.face::after{content:"";position:absolute;right:1rem;top:50%;width:.45rem;height:.45rem;
border:solid var(--soft);border-width:0 2px 2px 0;transform:translateY(-50%) rotate(-45deg)}
[open]>.face::after,[open]>summary>.face::after{transform:translateY(-60%) rotate(45deg)}
.box>.face:hover,.group>summary:hover>.face{background:color-mix(in srgb,var(--c) 7%,var(--card))}
.slab svg{display:block;width:60px;height:44px;stroke:var(--card);stroke-width:1;fill:var(--c);stroke-linejoin:round}
.lid{fill:color-mix(in srgb,var(--c) 55%,var(--card))}
.end{fill:color-mix(in srgb,var(--c) 78%,#000)}
.defs{position:absolute;width:0;height:0}
.name b{display:block;font-size:1rem;font-weight:600;line-height:1.3;overflow-wrap:anywhere}
.name small,.num small{display:block;line-height:1.35}
.out{overflow-wrap:anywhere}
.num{text-align:right;font-weight:600;line-height:1.3}
.share{font-size:.8125rem;color:var(--soft);display:flex;align-items:center;gap:.5rem;justify-content:flex-end;
white-space:nowrap}
.share i{flex:1;height:.5rem;border-radius:3px;background:linear-gradient(var(--c),var(--c)) 0/var(--p) 100% no-repeat,
color-mix(in srgb,var(--line) 60%,transparent)}
.group>ol{position:relative}
.group>ol::before{content:"";position:absolute;z-index:-1;top:-6px;right:0;
bottom:calc(-7px + 2px*min(2,var(--d) - 1));left:calc(var(--left) - var(--step));border:1px solid var(--line);
border-left:4px solid color-mix(in srgb,var(--net) 45%,transparent);border-radius:0 0 8px 8px;
background:color-mix(in srgb,var(--net) 4%,var(--bg))}
.group>ol .box,.group>ol .group>summary>.face{margin-right:8px}
.in{display:flex;gap:2.5rem;padding:.25rem 1.1rem 1.1rem;border-top:1px solid var(--line)}
.in>div{flex:1;min-width:0}
.eq{border-collapse:collapse;margin-top:.85rem}
.eq caption{text-align:left;white-space:nowrap;contain:inline-size;font-size:.8125rem;color:var(--soft);
margin-bottom:.1rem}
.eq th{text-align:left;font-weight:400;padding:.12rem 1.2rem .12rem 0;color:var(--soft);vertical-align:baseline}
.eq th:empty{padding:0}
.eq td{padding:.12rem .55rem .12rem 0;vertical-align:baseline}
.eq td,.letters dt{font-size:1.08rem}
.eq .all td,.eq .all th{border-top:1px solid var(--line)}
var,.letters dt{font-family:"STIX Two Text","Cambria Math",Cambria,Georgia,"Times New Roman",serif}
var{font-style:italic;padding-right:.03em}
sub{font-size:.72em;line-height:0;padding-left:.08em}
.letters{display:grid;grid-template-columns:repeat(auto-fill,minmax(14rem,1fr));gap:.1rem 1.5rem;margin-top:.85rem;
font-size:.9375rem}
.letters div{display:flex;gap:.4rem;align-items:baseline}
.letters dt{white-space:nowrap}
.letters span{color:var(--soft);margin-left:.3rem}
.facts{margin-top:.85rem;font-size:.9375rem;display:grid;gap:.15rem}
.facts div{display:flex;gap:0 .6rem}
.facts dt{flex:none}
.facts dt{color:var(--soft)}
.facts dd{overflow-wrap:anywhere}
figure{margin-top:1.2rem;flex:none}
figure img{display:block;max-width:100%;height:auto;image-rendering:pixelated;background:var(--line);
border:3px solid var(--line);box-sizing:content-box;border-radius:3px}
figcaption{font-size:.8125rem;line-height:1.4;color:var(--soft);margin-top:.4rem;max-width:18.5rem}
.row:target>.box,.row:target>.group>summary>.face{outline:2px solid var(--link);outline-offset:1px}
.finding .wires,.finding .after::before,.finding .after::after{display:none}
.finding .row{padding-top:6px}
.sum{margin-top:.75rem;max-width:none}
.sum b{color:var(--ink)}
@media screen and (max-width:46rem){
main{padding:1.5rem .75rem 3rem}
h1{font-size:1.9rem}
.totals{grid-template-columns:1fr 1fr}
.totals div{padding:.7rem .8rem}
.totals b{font-size:1.25rem}
.parts{grid-template-columns:1fr}
.explained .what{display:block}
.explained small{display:block}
.heads{display:none}
.rows{--u:.55}
.face{grid-template-columns:60px minmax(0,1fr) auto;padding-right:1.9rem;gap:0 .6rem}
.slab{grid-row:span 2}
.name{grid-column:2/4}
.out{font-size:.875rem;color:var(--soft)}
.num small{display:none}
.share{grid-column:1/4}
.share:empty{display:none}
.in{display:block;padding:.25rem .8rem .9rem}
figure img{box-sizing:border-box}
.eq,.eq tbody,.eq tr,.eq caption{display:block}
.eq caption{white-space:normal;contain:none}
.eq tr{padding:.3rem 0}
.eq th{display:block}
.eq td{display:inline-block;max-width:100%}
.eq td:empty{display:none}
.eq .all{border-top:1px solid var(--line)}
.eq .all td,.eq .all th{border:0;display:inline-block}
.letters{grid-template-columns:1fr}
.facts div{flex-wrap:wrap}
.tools{position:static}
.tools label{flex:1 1 100%;display:flex;align-items:center;gap:.5rem}
.tools input{flex:1;min-width:0;margin:0}
}
@media print{
:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444b54;--line:#c9ced4;--wire:#6b7682;--link:#000;
--net:#3f4a5a;--rnn:#8446b0;--att:#bd2f69;--con:#2b6cb0;--den:#b4531a;--nor:#647a1e;--poo:#0d8074;--emb:#8f6f00;
--ops:#7a828c;--rest:#868f99;--m0:#173f66;--m1:#35699c;--m2:#5f95c4;--m3:#a34a12;--m4:#cd7430}
@page{margin:14mm 12mm}
html{font-size:11px}
body{font-size:11px}
main{max-width:none;padding:0}
h2{margin-top:1.8rem}
.face{grid-template-columns:60px minmax(9rem,2fr) minmax(6rem,1fr) minmax(8rem,1.2fr) 8rem}
figure img,figcaption{max-width:14rem}
.tools,.face::after{display:none!important}
.box,.totals div,.parts li,figure,.eq tr{break-inside:avoid}
h2,.heads,.group>summary{break-after:avoid}
i,.slab svg,.stack{-webkit-print-color-adjust:exact;print-color-adjust:exact}
a{text-decoration:none}
}
"""

SCRIPT = """
(() => {
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const tools = document.querySelector(".tools"), find = document.querySelector("#find");
const rows = all(".row").map(row => [row, row.querySelector(".name").textContent.toLowerCase()]);
tools.hidden = false;
tools.onsubmit = event => event.preventDefault();
tools.onclick = event => {
  const to = event.target.dataset.to;
  if (to) all(".box,.block").forEach(box => { box.open = to === "1"; });
};
find.oninput = () => {
  const word = find.value.trim().toLowerCase();
  let found = 0;
  for (const [row, text] of rows) {
    const hit = text.includes(word);
    row.hidden = !hit;
    if (hit) for (let up = row; (up = up.parentElement.closest(".row"));) {
      up.hidden = false;
      if (word) up.firstElementChild.open = true;
    }
    found += hit;
  }
  document.body.classList.toggle("finding", word !== "");
  document.querySelector(".tools output").value = word ? found + " found" : "";
};
const reveal = () => {
  const row = location.hash && document.getElementById(location.hash.slice(1));
  if (!row || !row.matches(".row")) return;
  for (let up = row; (up = up.parentElement.closest("details"));) up.open = true;
  row.querySelector("details").open = true;
  row.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
if (document.querySelector("main").dataset.open === "1") {
  let shut = [];
  addEventListener("beforeprint", () => {
    shut = all("details:not([open])");
    shut.forEach(box => { box.open = true; });
  });
  addEventListener("afterprint", () => shut.forEach(box => { box.open = false; }));
}
})();
"""
