// heartbeat.js COMMAND…: setInterval as heartbeat; starts the command and again whenever it is refused.
// Prints `beat MS` (largest pause so far, at each second) and `ran CODE` at the end.
const { spawn } = require('child_process');
const command = process.argv.slice(2);
let last = Date.now(), told = Date.now(), worst = 0;
const timer = setInterval(() => {
  const now = Date.now();
  worst = Math.max(worst, now - last);
  last = now;
  if (now - told > 1000) { told = now; console.log(`beat ${worst}`); }
}, 100);
function run() {
  const again = () => { console.log('refused'); setTimeout(run, 12000); };
  let child;
  try { child = spawn(command[0], command.slice(1)); } catch (error) { return again(); }
  let failed = false;
  child.on('error', () => { failed = true; again(); });
  child.on('exit', (code) => { if (!failed) { console.log(`ran ${code}`); clearInterval(timer); } });
}
run();
