//! What is committed and embedded is what the source builds.

import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { build } from "vite";

test("dist is what the source builds", async () => {
  const root = join(import.meta.dirname, "..");
  const outDir = mkdtempSync(join(tmpdir(), "ichd-dist-"));
  try {
    await build({ root, logLevel: "error", build: { outDir, emptyOutDir: true } });
    const built = readdirSync(outDir).sort();
    assert.deepEqual(readdirSync(join(root, "dist")).sort(), built);
    for (const file of built) {
      const same = readFileSync(join(outDir, file)).equals(readFileSync(join(root, "dist", file)));
      assert.ok(same, `dist/${file} is not what the source builds: npm run build`);
    }
  } finally {
    rmSync(outDir, { recursive: true });
  }
});
