// A loss curve from a file of one's own: what sfplus_kernels.forecast.read takes, but for TensorBoard's event files.

import { CannotForecast } from "./forecast.js";

const STEPS = ["step", "global_step", "iteration", "steps"];
const LOSSES = ["loss", "train_loss", "train/loss", "training_loss", "loss/train"];
const RATES = ["lr", "learning_rate", "train/learning_rate", "train/lr"];
const FORMATS = "JSON lines (.jsonl), CSV (.csv) or a Trainer's trainer_state.json";

/** The rows of CSV text: a line of names, then values; quotes may hold commas. */
function csvRows(text) {
  const [names, ...lines] = globalThis.d3.csvParseRows(text.trim());
  return lines.map((cells) => Object.fromEntries(names.map((name, i) => [name.trim(), cells[i]])));
}

/** The format by what the text begins with; {rows, isMean}. */
function rowsOf(text) {
  const begin = text.trimStart();
  if (begin === "") throw new CannotForecast("The file is empty.");
  if (!begin.startsWith("{") && !begin.startsWith("[")) return { rows: csvRows(begin), isMean: false };
  let whole = null;
  try {
    whole = JSON.parse(begin);
  } catch {
    // several lines of JSON are not JSON
  }
  if (Array.isArray(whole?.log_history)) return { rows: whole.log_history, isMean: true };
  try {
    return { rows: begin.trimEnd().split(/\r?\n/).filter((line) => line.trim()).map((line) => JSON.parse(line)), isMean: false };
  } catch (error) {
    throw new CannotForecast(`This looks like JSON and is not (${error.message}). Expected ${FORMATS}.`);
  }
}

const given = (row, name) => row?.[name] !== undefined && row[name] !== null && row[name] !== "";

function chosen(usual, rows, what) {
  const found = [...new Set(rows.flatMap((row) => Object.keys(row ?? {})))];
  const name = usual.find((candidate) => found.includes(candidate));
  if (name !== undefined) return name;
  const has = found.length === 0 ? "no columns" : `the columns ${found.slice(0, 12).join(", ")}`;
  throw new CannotForecast(`There is no column for the ${what}: expected ${usual.join(" or ")}, and there are ${has}. Expected ${FORMATS}.`);
}

function numbers(rows, name) {
  return rows.map((row) => {
    if (!given(row, name)) return NaN;
    const value = Number(row[name]);
    if (Number.isNaN(value) && !/^[+-]?nan$/i.test(String(row[name]).trim())) {
      throw new CannotForecast(`Column ${name} has "${row[name]}"; expected numbers.`);
    }
    return value;
  });
}

/** {step, loss, rate?} of the text of a file. Throws CannotForecast with what is wrong. */
export function readMetrics(text) {
  const { rows, isMean } = rowsOf(text);
  const [step, loss] = [chosen(STEPS, rows, "step"), chosen(LOSSES, rows, "loss")];
  const kept = rows.filter((row) => given(row, step) && given(row, loss));
  const rate = RATES.find((name) => given(kept.at(-1), name));
  let steps = numbers(kept, step);
  if (isMean) steps = steps.map((t, i) => ((i > 0 ? steps[i - 1] : 0) + t) / 2); // a mean stands at its middle
  const curve = { step: steps, loss: numbers(kept, loss) };
  return rate === undefined ? curve : { ...curve, rate: numbers(kept, rate) };
}
