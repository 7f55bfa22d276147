/**
 * One text for one JSON value, whatever the order of its keys: what hashes and comparisons are made of. Pure.
 */
import { createHash } from 'node:crypto';

/** JSON with sorted keys; undefined members are left out, as JSON.stringify does. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map((item) => canonicalJson(item ?? null)).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value ?? null);
  const members = Object.entries(value)
    .filter(([, member]) => member !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, member]) => `${JSON.stringify(key)}:${canonicalJson(member)}`);
  return `{${members.join(',')}}`;
}

/** No vowels and no look-alikes, so that a hash spells nothing: Kubernetes' own alphabet for names. */
const alphabet = 'bcdfghjklmnpqrstvwxz2456789';

/** `length` characters that are safe in names and label values; 10 hold 47 bits. */
export function hashName(value: unknown, length = 10): string {
  const digest = createHash('sha256').update(canonicalJson(value)).digest();
  let number = BigInt(`0x${digest.toString('hex')}`);
  let text = '';
  for (let index = 0; index < length; index++) {
    text += alphabet[Number(number % 27n)];
    number /= 27n;
  }
  return text;
}

export function sameJson(a: unknown, b: unknown): boolean {
  return canonicalJson(a) === canonicalJson(b);
}
