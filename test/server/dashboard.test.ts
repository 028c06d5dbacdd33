// The Grafana dashboard and the page on metrics against the metrics that there are: whoever renames one hears of it.

import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createMetrics } from "../../src/server/observe/metrics.ts";

const test = suite("dashboard");

interface Panel {
  readonly id: number;
  readonly title: string;
  readonly gridPos: { readonly h: number; readonly w: number; readonly x: number; readonly y: number };
  readonly datasource?: { readonly uid: string };
  readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[];
}

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
const dashboard = JSON.parse(read("docs/grafana/thaw.json"));
const panels: readonly Panel[] = dashboard.panels;

/** Kinds of all metrics by name, without those of the runtime, as a scrape declares them. */
async function declared(): Promise<Map<string, string>> {
  const text = await createMetrics().scrape({
    registry: { countRuns: async () => new Map() },
    runs: { active: [] },
    gpu: { hello: undefined, starts: 0 },
    runLog: { watchers: 0 },
    routes: { counts: { subscribers: 0, matched: 0, dropped: 0 } },
    dataDirectory: tmpdir(),
    version: "0",
  });
  return new Map([...text.matchAll(/^# TYPE (thaw_\w+) (\w+)$/gm)].map(([, name, kind]) => [name, kind]));
}

/** The metric that a name in an expression is of. */
function metricOf(name: string, kinds: ReadonlyMap<string, string>): string | undefined {
  if (kinds.has(name)) return kinds.get(name) === "histogram" ? undefined : name;
  const whole = name.replace(/_(bucket|count|sum)$/, "");
  return kinds.get(whole) === "histogram" ? whole : undefined;
}

test("every metric that the dashboard names exists, and every expression has its server", async () => {
  const kinds = await declared();
  assert.ok(kinds.size > 15);
  const queries = panels.flatMap(({ title, targets = [] }) => targets.map(({ expr }) => ({ title, expr })));
  assert.ok(queries.length > 20);
  for (const { title, expr } of queries) {
    const names = expr.match(/\bthaw_\w+/g) ?? [];
    assert.ok(names.length > 0, title);
    for (const name of names) assert.ok(metricOf(name, kinds), `${title}: ${name}`);
    assert.match(expr, /instance=~"\$instance"/, title);
    const depth = [...expr].reduce((now, c) => now + (c === "(" ? 1 : c === ")" ? -1 : 0), 0);
    assert.is(depth, 0, title);
  }
});

test("every metric is on the page for operators, and the page names no other", async () => {
  const kinds = await declared();
  const named = new Set(read("docs/operating.md").match(/\bthaw_\w+/g));
  assert.equal([...named].sort(), [...kinds.keys()].sort());
});

test("panels have ids of their own, the chosen data source, and places that do not overlap", () => {
  assert.is(new Set(panels.map(({ id }) => id)).size, panels.length);
  const taken = new Set<string>();
  for (const { title, gridPos, datasource, targets } of panels) {
    if (targets) assert.is(datasource?.uid, `\${${dashboard.templating.list[0].name}}`, title);
    for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
      assert.ok(x < 24, title);
      for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
        assert.not(taken.has(`${x} ${y}`), title);
        taken.add(`${x} ${y}`);
      }
    }
  }
});

test.run();
