import assert from 'node:assert';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { StopStrings } from '../../../runtime/llm/stop-strings.ts';

/** What comes out at each push, then at the end; stops at a match as a caller would. */
function watch(stops: string[], pieces: readonly string[]): { out: string[]; stop: string | null } {
  const watcher = new StopStrings(stops);
  const out: string[] = [];
  for (const piece of pieces) {
    const { text, stop } = watcher.push(piece);
    out.push(text);
    if (stop !== null) return { out, stop };
  }
  return { out: [...out, watcher.flush()], stop: null };
}

describe('stop strings', () => {
  const cases: [string, string[], string[], string[], string | null][] = [
    ['no stop strings hold nothing back', [], ['a', 'b'], ['a', 'b', ''], null],
    ['an empty stop string is none', [''], ['a'], ['a', ''], null],
    ['the text before a match is kept, the match and what follows are not', ['##'], ['ab##cd'], ['ab'], '##'],
    ['a match may span pieces', ['END'], ['xE', 'N', 'Dy'], ['x', '', ''], 'END'],
    [
      'what only began like a stop string comes out when that is clear',
      ['END'],
      ['xE', 'Nx'],
      ['x', 'ENx', ''],
      null,
    ],
    ['what is held back comes out at the end', ['END'], ['xEN'], ['x', 'EN'], null],
    ['a beginning inside a beginning is found', ['aab'], ['aa', 'ab'], ['', 'a'], 'aab'],
    ['of two the one complete first wins', ['bcd', 'c'], ['abcd'], ['ab'], 'c'],
    ['of two complete at once the longer wins', ['d', 'cd'], ['abcd'], ['ab'], 'cd'],
    ['a match at the very beginning leaves nothing', ['ab'], ['ab'], [''], 'ab'],
    ['characters outside the basic plane', ['🙂b'], ['a🙂', 'b'], ['a', ''], '🙂b'],
  ];
  for (const [name, stops, pieces, out, stop] of cases) {
    test(name, () => assert.deepEqual(watch(stops, pieces), { out, stop }));
  }

  test('the answer does not depend on how the text was cut', () => {
    const text = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 30 });
    const stop = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(
        text,
        fc.array(stop, { maxLength: 3 }),
        fc.array(fc.nat(30), { maxLength: 6 }),
        (all, stops, cuts) => {
          const at = [0, ...cuts.map((cut) => Math.min(cut, all.length)).sort((a, b) => a - b), all.length];
          const pieces = at.slice(1).map((end, i) => all.slice(at[i], end));
          const cut = watch(stops, pieces);
          const whole = watch(stops, [all]);
          assert.deepEqual([cut.out.join(''), cut.stop], [whole.out.join(''), whole.stop]);
        },
      ),
    );
  });
});
