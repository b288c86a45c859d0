// What a page that has been loaded shows: its ids, links, images, headings, width, and markup that nobody rendered.
() => {
  const text = (element) => element.textContent.trim().replace(/\s+/g, " ").slice(0, 80);
  const shown = (element) => element.getClientRects().length > 0;

  const width = document.documentElement.clientWidth;
  // What scrolls in a frame of its own may be wider; else the outermost element is the one to mend.
  const wide = [...document.body.querySelectorAll("*")].filter((element) => {
    const box = element.getBoundingClientRect();
    return shown(element) && box.right > width + 1 && box.left >= 0 && box.left < width;
  });

  const raw = [];
  const main = document.querySelector("article") ?? document.body;
  const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (parent.closest("pre, code, math, script, style, .sig, .field-list strong") || !shown(parent)) continue;
    if (/\$\$|\\[a-zA-Z]{2,}|\]\(|\*\*|^#{1,6} |`|<!--|-->|^\|.*\|$/.test(walker.currentNode.data.trim())) {
      raw.push(text(walker.currentNode));
    }
  }

  return {
    title: document.title,
    ids: [...document.querySelectorAll("[id]")].map((element) => element.id),
    links: [...document.querySelectorAll("a[href]")].map((link) => link.href),
    images: [...document.images].filter((image) => image.closest("article")).map((image) => ({
      source: image.src.slice(0, 200),
      drawn: image.complete && image.naturalWidth > 0,
      alt: image.getAttribute("alt") ?? "",
    })),
    headings: [...main.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((each) => [Number(each.tagName[1]), text(each)]),
    width: document.scrollingElement.scrollWidth,
    wide: wide.slice(0, 5).map((element) => `${element.tagName} ${element.className}: ${text(element)}`),
    raw,
  };
}
