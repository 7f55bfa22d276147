/**
 * The tokens of one sequence and the chained hashes of its full blocks, computed when first asked for.
 * Enters: token ids; leaves: hashes that are equal exactly when root and all tokens up to the block's end are (but for
 * collisions, so whoever acts on one compares the tokens too). Must not know which blocks exist.
 */

export class TokenChain {
  readonly blockTokens: number;
  readonly salt: string;
  /** Which rotary table the keys are turned by: those of another are others. */
  readonly ropeVariant: number;
  #tokens: Int32Array;
  #length: number;
  readonly #hashes: number[] = [];

  constructor(tokens: ArrayLike<number>, blockTokens: number, salt = '', ropeVariant = 0) {
    this.blockTokens = blockTokens;
    this.salt = salt;
    this.ropeVariant = ropeVariant;
    this.#tokens = Int32Array.from(tokens);
    this.#length = tokens.length;
  }

  get length(): number {
    return this.#length;
  }

  /** Full blocks in the tokens so far. */
  get fullBlocks(): number {
    return Math.floor(this.#length / this.blockTokens);
  }

  at(index: number): number {
    return this.#tokens[index]!;
  }

  push(token: number): void {
    if (this.#length === this.#tokens.length) {
      const grown = new Int32Array(Math.max(16, this.#length * 2));
      grown.set(this.#tokens);
      this.#tokens = grown;
    }
    this.#tokens[this.#length++] = token;
  }

  /** A view, valid until the next push. */
  slice(start: number, end: number): Int32Array {
    return this.#tokens.subarray(start, end);
  }

  /** The hash of tokens 0 .. (block + 1) * blockTokens - 1, an integer below 2^53. */
  hash(block: number): number {
    for (let next = this.#hashes.length; next <= block; next++) {
      const parent = next === 0 ? rootHash(this.root) : this.#hashes[next - 1]!;
      this.#hashes.push(
        chainHash(parent, this.slice(next * this.blockTokens, (next + 1) * this.blockTokens)),
      );
    }
    return this.#hashes[block]!;
  }

  /** What the whole cached prefix depends on beside the tokens. */
  get root(): string {
    return `${this.ropeVariant}:${this.salt}`;
  }

  /** The same tokens, whose keys are turned by another table. */
  withRopeVariant(variant: number): TokenChain {
    return new TokenChain(this.slice(0, this.#length), this.blockTokens, this.salt, variant);
  }

  fork(): TokenChain {
    const copy = this.withRopeVariant(this.ropeVariant);
    copy.#hashes.push(...this.#hashes);
    return copy;
  }

  /** Full blocks that both begin with, at most `limit`. By hash alone: good for a policy, not for sharing memory. */
  sharedBlocks(other: TokenChain, limit = Number.POSITIVE_INFINITY): number {
    let low = 0;
    let high = Math.min(this.fullBlocks, other.fullBlocks, limit);
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.hash(middle - 1) === other.hash(middle - 1)) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

/** Two murmur-like lanes of 32 bits, of which 53 bits are kept so that the result is an exact number. */
function chainHash(parent: number, tokens: ArrayLike<number>): number {
  let a = Math.floor(parent / 0x200000) ^ 0x9e3779b9;
  let b = (parent % 0x200000) ^ 0x85ebca6b;
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i]!;
    a = Math.imul(rotate(a ^ Math.imul(token, 0xcc9e2d51), 13), 5) + 0xe6546b64;
    b = Math.imul(rotate(b ^ Math.imul(token, 0x1b873593), 17), 9) + a;
  }
  a = finish(a ^ b);
  b = finish(b + a);
  return (a >>> 0) * 0x200000 + (b >>> 11);
}

function rootHash(root: string): number {
  return chainHash(
    root.length,
    Array.from(root, (character) => character.codePointAt(0)!),
  );
}

function rotate(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

function finish(value: number): number {
  const first = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  const second = Math.imul(first ^ (first >>> 13), 0xc2b2ae35);
  return second ^ (second >>> 16);
}
