"""Two hundred texts that would run script, if a page took any of them for markup."""

from __future__ import annotations

_ACT = "alert(1)"
_BREAKS = ("", '"', "'", '">', "'>", "-->", "</textarea>", "</title>", "]]>", "`")
_VECTORS = (
    f"<script>{_ACT}</script>",
    f"<img src=x onerror={_ACT}>",
    f"<svg onload={_ACT}>",
    f"<svg/onload={_ACT}//",
    f"<body onload={_ACT}>",
    f"<iframe srcdoc='<script>{_ACT}</script>'>",
    f"<iframe src=javascript:{_ACT}>",
    f"<a href=javascript:{_ACT} autofocus>x</a>",
    f"<input autofocus onfocus={_ACT}>",
    f"<details open ontoggle={_ACT}>",
    f"<video><source onerror={_ACT}>",
    f"<math><mtext></mtext><script>{_ACT}</script>",
    f"<b hx-on:click={_ACT} hx-trigger=load hx-get=/>x</b>",
    f"<b hx-get=/nothing hx-trigger='load[{_ACT}]'>",
    f" onmouseover={_ACT} autofocus onfocus={_ACT} x=",
    f"<style>@import 'javascript:{_ACT}'</style>",
    "{{7*7}}{% raw %}",
    f"${{{_ACT}}}",
    f"javascript:{_ACT}//",
    f"<ScRiPt>{_ACT}</sCrIpT >",
)
HOSTILE = tuple(f"{before}{vector}"[:100] for vector in _VECTORS for before in _BREAKS)
assert len(set(HOSTILE)) == 200
