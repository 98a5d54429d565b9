// Opens the built page in headless Chromium, uses it as a person would, and prints what was seen as JSON.
//
//     node page.mjs '{"playwright": FILE, "chromium": FILE, "url": URL,
//                     "model": NAME, "prompt": TEXT, "count": N}'
//
// "broken", in place of the last three, lists pages that are to fail, each with a "name", and any of "script"
// (run before the page's), "url", and the "path" of a file with its "body" and "status".

import { tmpdir } from "node:os";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";

const given = JSON.parse(process.argv[2]);
const { chromium } = await import(given.playwright);
const profile = await mkdtemp(join(tmpdir(), "mamba-web-"));
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
flags.push("--disable-background-networking", "--disable-component-update", "--disable-sync");
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: given.chromium,
  args: flags,
});
try {
  console.log(JSON.stringify(given.broken ? await seeBroken(given.broken) : await writeText()));
} finally {
  await browser.close();
  await rm(profile, { recursive: true, force: true });
}

async function writeText() {
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto(`${given.url}/?model=${given.model}`);
  const isReady = () => document.getElementById("status").textContent.startsWith("Ready");
  const text = (id) => page.textContent(`#${id}`);
  await page.waitForFunction(isReady, null, { timeout: 60000 });
  await page.click("#clear");
  await page.focus("#text");
  await page.keyboard.type(given.prompt);
  await page.waitForFunction(
    (count) => document.getElementById("tokens").textContent === String(count),
    Buffer.byteLength(given.prompt),
  );
  const read = await text("read");
  await page.fill("#temperature", "0");
  await page.fill("#count", String(given.count));
  await page.click("#write");
  await page.waitForFunction(isReady, null, { timeout: 60000 });
  await page.waitForFunction(() => document.getElementById("quickest").textContent); // drawn
  const seen = { read, text: await page.inputValue("#text"), errors };
  for (const id of ["tokens", "speed", "state-size", "quickest"]) seen[id] = await text(id);
  seen.colours = await page.$$eval("canvas", (all) =>
    all.map((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    }),
  );
  return seen;
}

async function seeBroken(cases) {
  const seen = {};
  for (const { name, script, path, body, status, url } of cases) {
    const page = await browser.newPage();
    if (script) await page.addInitScript(script);
    if (path)
      await page.route(`**/${path}`, (route) =>
        route.fulfill({ status: status ?? 200, body: body ?? "" }),
      );
    await page.goto(url ?? given.url);
    await page.waitForFunction(
      () => !/^(Loading|ONNX Runtime makes)/.test(document.getElementById("status").textContent),
    );
    seen[name] = await page.textContent("#status");
    await page.close();
  }
  return seen;
}
