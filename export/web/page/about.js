// The description of the model, from the manifest.

import { element } from "./display.js";

/** Show what the manifest says. `networks` are the entries of the graphs that run. */
export function showManifest(manifest, networks) {
  const find = (id) => document.getElementById(id);
  find("facts").replaceChildren(
    ...factsOf(manifest, networks).flatMap(([term, fact]) => [
      element("dt", { textContent: term }),
      element("dd", { textContent: fact }),
    ]),
  );
  find("card").href = `bundle/${manifest.card.file}`;
  find("manifest").textContent = JSON.stringify(manifest, null, 1);
  find("smoke").hidden = manifest.training.smoke !== true;
  find("about").hidden = false;
}

function factsOf({ name, task, input, temperature, metrics, plausibility, license, licence }, networks) {
  const accuracy = metrics.test?.accuracy;
  const facts = [
    ["name", name],
    ["data set", `${task.dataset}, ${task.view} slices`],
    ["classes", task.classes.join(", ")],
    ["input", `${input.size} x ${input.size} pixels, resampled by ${input.resample}`],
    ["window", input.window ? `level ${input.window[0]} HU, width ${input.window[1]} HU` : "none, takes no HU"],
    ["orientation", input.orientation ? describedOrientation(input.orientation) : "not known"],
    ["temperature", String(temperature)],
  ];
  if (typeof accuracy === "number") facts.push(["accuracy on test", accuracy.toFixed(4)]);
  if (plausibility) facts.push(["plausibility", `a warning below ${plausibility.threshold.toFixed(3)}`]);
  for (const { stage, file, precision, bytes, sha256 } of networks) {
    const size = (bytes / 1e6).toFixed(2);
    facts.push(["network", `${stage}: ${file}, ${precision}, ${size} MB, SHA-256 ${sha256.slice(0, 12)}...`]);
  }
  facts.push(["license", license ?? licence]);
  return facts;
}

const DIRECTIONS = { L: "left", R: "right", P: "posterior", A: "anterior", H: "head", F: "feet" };

/** Describe two letters: `PL: rows run to posterior, columns to left`. */
export function describedOrientation([rows, columns]) {
  return `${rows}${columns}: rows run to ${DIRECTIONS[rows]}, columns to ${DIRECTIONS[columns]}`;
}
