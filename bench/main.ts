/** `npm run bench [steps|peers|profile|scheduling|soak]`: picks the benchmark; what follows its name are its own options. */
import { benchPeers } from './peers/main.ts';
import { benchProfile } from './profile.ts';
import { benchScheduling } from './scheduling.ts';
import { benchSoak } from './soak.ts';
import { benchSteps } from './steps.ts';

const benches: Readonly<Record<string, (argv: readonly string[]) => Promise<void>>> = {
  steps: benchSteps,
  peers: benchPeers,
  profile: benchProfile,
  scheduling: benchScheduling,
  soak: benchSoak,
};

const [name = 'steps', ...argv] = process.argv.slice(2);
const bench = Object.hasOwn(benches, name) ? benches[name] : undefined;
if (!bench) {
  console.error(
    `npm run bench -- ${name}: expected one of ${Object.keys(benches).join(', ')}, for example npm run bench -- peers`,
  );
  process.exit(2);
}
await bench(argv);
