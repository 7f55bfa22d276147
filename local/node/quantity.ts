/** Kubernetes quantities as numbers, as far as resourceFieldRef needs them. */

const suffixes: Readonly<Record<string, number>> = {
  n: 1e-9,
  u: 1e-6,
  m: 1e-3,
  '': 1,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

/** Undefined for what is not a quantity. */
export function parseQuantity(text: string): number | undefined {
  const match = /^([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([a-zA-Z]*)$/.exec(text);
  const factor = suffixes[match?.[2] ?? ''];
  return match && factor !== undefined ? Number(match[1]) * factor : undefined;
}

/** A quantity in units of the divisor ("" and "0" mean 1), rounded up: the text that a pod sees. */
export function divideQuantity(quantity: string, divisor: string | undefined): string {
  const value = parseQuantity(quantity) ?? 0;
  const unit = parseQuantity(divisor || '1') || 1;
  // A hair less, since 0.1 / 0.001 is a little more than 100 in binary.
  return String(Math.ceil(value / unit - 1e-9));
}
