// Draws the page of report.html from the JSON document in it, with Chart.js 3. With #drawn in its address, the page
// then counts the pixels of each series of each plot, and leaves the counts in an element of that name, for a test.
'use strict';

window.addEventListener('error', (event) => {
  const box = document.getElementById('error');
  box.textContent = 'This page could not be drawn: ' + event.message;
  box.style.display = 'block';
});

const results = JSON.parse(document.getElementById('results').textContent);

// The colours of Okabe and Ito, which colour-blind people can tell apart. Memory without a sequence is white, grey or
// black.
const blue = '#0072b2', orange = '#e69f00', green = '#009e73', pink = '#cc79a7', sky = '#56b4e9', vermilion = '#d55e00';
const colours = {
  used: blue, wasted: orange, cached: sky, scattered: '#e3b4cf', run: '#f4f4f4', runLine: '#000000',
  blocked: vermilion, outOfRoom: '#000000', running: blue, waiting: vermilion,
  percentiles: [sky, blue, '#00324f'],
  classes: [blue, orange, green, pink, sky, vermilion],
  policies: {'contiguous-reserve': vermilion, 'contiguous-grow': orange, 'paged': blue, 'prefix-shared': green},
  map: {free: '#ffffff', cached: '#b5b5b5', reserved: '#e2e2e2', shared: '#222222'},
  tiers: [blue, orange, green],
  sequences: [blue, orange, green, pink, sky, vermilion],
  grid: 'rgba(0, 0, 0, 0.10)',
};

Chart.defaults.font.family = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
Chart.defaults.font.size = 13;
Chart.defaults.color = '#333333';
Chart.defaults.animation = false;
Chart.defaults.maintainAspectRatio = false;
Chart.defaults.plugins.legend.display = false;

// --- words and numbers ---------------------------------------------------------------------------------------------

const grouped = (value) => Math.round(value).toLocaleString('en-US');
const duration = (ms) =>
  ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : ms < 1e5 ? grouped(ms) : grouped(ms / 1000) + ' s';
const scaled = (value, unit) => {  // 8.0 G, 730 k
  const [power, prefix] = [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']].find(([p]) => value >= p) ?? [1, ''];
  return `${(value / power).toFixed(value / power < 10 ? 1 : 0)} ${prefix}${unit}`;
};
const percent = (part, all) => (all === 0 ? 0 : 100 * part / all).toFixed(1) + ' %';
const prefill = (run) => run.chunk_tokens === 0 ? 'whole prompts' : `chunks of ${grouped(run.chunk_tokens)}`;
const distinct = (values) => [...new Set(values)];

const runs = results.runs;
runs.filter((run) => run.layers !== 'alike').forEach((run) => run.policy += `, ${run.layers}`);
// "prefix-shared, host + disk, cheaper"
runs.filter((run) => run.tier_set).forEach((run) => run.policy += `, ${run.tier_set}`);
runs.filter((run) => run.load_rule).forEach((run) => run.policy += `, ${run.load_rule}`);
if (distinct(runs.map((run) => run.mode)).length > 1) {
  runs.forEach((run) => run.policy += `, ${run.mode}`);  // from here on runs of one policy differ in name
}
const policies = distinct(runs.map((run) => run.policy));
const prefills = distinct(runs.map(prefill));
const loads = distinct(runs.map((run) => run.load));

function element(tag, parent, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  parent.append(made);
  return made;
}
const byId = (id) => document.getElementById(id);

// --- the head and the tables ---------------------------------------------------------------------------------------

function head() {
  const {scenario, model, hardware, pool, slo} = results;
  document.title = `serve-bench: ${scenario.name}`;
  byId('name').textContent = scenario.name;
  byId('story').textContent = scenario.story;
  const devices = hardware.devices > 1 ? `${hardware.devices} × ` : '';
  const rows = {
    'model': `${model.name}, ${scaled(model.parameters, '')} parameters, ` +
        `${(model.kv_bytes_per_token / 1024).toFixed(0)} KiB per token in all layers of the cache (${model.source})`,
    'hardware': `${devices}${hardware.name}: ${scaled(hardware.peak, 'FLOPS')}, ` +
        (hardware.bandwidth < 1e18 ? `${scaled(hardware.bandwidth, 'B/s')}` : 'no limit by bytes seen') +
        (hardware.memory > 0 ? `, ${scaled(hardware.memory, 'B')} each` : '') + ` (${hardware.source})`,
    'pool': `${grouped(pool.tokens)} tokens, ${scaled(pool.tokens * model.kv_bytes_per_token, 'B')}; ` +
        `blocks of ${pool.block_tokens} tokens`,
    'SLO': `TTFT ${grouped(slo.ttft_ms)} ms, TPOT ${grouped(slo.tpot_ms)} ms`,
    'requests': distinct(runs.map((run) => grouped(run.requests.arrived))).join(', ') +
        (scenario.trace ? ` of ${scenario.trace}` : `, made with seed ${scenario.seed}`),
    'time': distinct(runs.map((run) => run.mode)).join(', ') + '; ' +
        distinct(runs.map((run) => run.order)).join(', '),
  };
  for (const [term, text] of Object.entries(rows)) {
    element('dt', byId('configuration'), {textContent: term});
    element('dd', byId('configuration'), {textContent: text});
  }
}

// columns: [title, text of a run, whether it is a symptom]
function table(parent, columns) {
  const words = ['policy', 'prefill'];
  const all = [['policy', (run) => run.policy], ['prefill', prefill]];
  if (loads.length > 1) {
    all.push(['load', (run) => run.load.toString()]);
  }
  all.push(...columns);
  const made = element('table', parent);
  const header = element('tr', element('thead', made));
  for (const [title] of all) {
    element('th', header, {textContent: title, className: words.includes(title) ? 'word' : ''});
  }
  const body = element('tbody', made);
  runs.forEach((run, i) => {
    const row = element('tr', body, {className: i > 0 && run.policy !== runs[i - 1].policy ? 'new' : ''});
    for (const [title, text, symptom] of all) {
      const className = words.includes(title) ? 'word' : symptom && symptom(run) ? 'symptom' : '';
      element('td', row, {textContent: text(run), className});
    }
  });
}

function tables() {
  const latency = [['completed', (run) => grouped(run.requests.completed)]];
  for (const [title, of] of [['TTFT', (run) => run.latency.ttft_ms], ['TPOT', (run) => run.latency.tpot_ms]]) {
    for (const p of ['p50', 'p95', 'p99']) {
      latency.push([`${title} ${p}`, (run) => duration(of(run)[p])]);
    }
  }
  latency.push(
      ['ITL p99', (run) => duration(run.itl_ms.p99)], ['e2e p50', (run) => duration(run.latency.e2e_ms.p50)],
      ['e2e p99', (run) => duration(run.latency.e2e_ms.p99)],
      ['output tokens/s', (run) => grouped(run.throughput.output_tokens_per_s)],
      ['goodput (requests/s)', (run) => run.throughput.goodput_per_s.toFixed(2)]);
  table(byId('latency-table'), latency);

  const counted = (title, name) => [
    title, ({counters}) => grouped(counters[name]) + (counters[name] ? ` (${grouped(counters[name + '_25'])})` : ''),
    ({counters}) => counters[name + '_25'] > 0];
  table(byId('memory-table'), [
    counted('failed admissions', 'failed_admissions'),
    counted('requests delayed', 'delayed'),
    ['nothing admitted (s)',
     ({counters}) => grouped(counters.blocked_s) + (counters.blocked_s ? ` (${grouped(counters.blocked_25_s)})` : ''),
     ({counters}) => counters.blocked_25_s > 0],
    counted('out of room while running', 'out_of_room'),
    ['most free at a failure', ({counters}) => percent(counters.most_free_at_failure, 1),
     ({counters}) => counters.most_free_at_failure >= 0.25],
    ['preempted', ({counters}) => grouped(counters.preemptions)],
    ['prompt tokens found', ({counters}) => percent(counters.prompt_tokens_found, counters.prompt_tokens)],
    ['prompt tokens computed', ({counters}) => grouped(counters.prefill_tokens)],
    ['refused', ({requests}) => grouped(requests.refused + requests.out_of_memory)],
    ['aborted', ({requests}) => grouped(requests.aborted)],
  ]);
}

// --- plots ---------------------------------------------------------------------------------------------------------

// {name, chart, series: [{label, colour, tolerance}]}: what the page shows now.
let plots = [];

// `series`: the colours to be found in the plot, by what they show.
function plot(parent, name, title, height, config, series) {
  const figure = element('figure', parent);
  if (title) {
    element('figcaption', figure, {textContent: title});
  }
  const box = element('div', figure, {className: 'canvas'});
  box.style.height = height + 'px';
  const canvas = element('canvas', box);
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', name);
  plots.push({name, parent, chart: new Chart(canvas, config), series});
}

function clear(parent) {
  plots.filter((one) => one.parent === parent || parent.contains(one.parent)).forEach((one) => one.chart.destroy());
  plots = plots.filter((one) => one.parent !== parent && !parent.contains(one.parent));
  parent.replaceChildren();
}

const axisTitle = (text) => ({display: true, text, font: {size: 13}});

const linearAxis = (title) =>
  ({type: 'linear', beginAtZero: true, title: axisTitle(title), grid: {color: colours.grid}});

// Milliseconds, or seconds where there are many: [milliseconds of one, its name].
const unitOf = (values) => Math.max(0, ...values) > 20000 ? [1000, 's'] : [1, 'ms'];

// Over values that are far apart, a logarithmic axis with ticks at 1, 2 and 5 times the powers of ten.
function axisOver(values, title) {
  const positive = values.filter((value) => value > 0);
  const least = Math.min(...positive), most = Math.max(...positive);
  if (positive.length === 0 || most / least < 20) {
    return linearAxis(title);
  }
  // At 1, 2 or 5 times a power of ten: the tick at or below, at or above a value.
  const factors = most / least > 200 ? [1] : [1, 2, 5];
  const power = (value) => Math.pow(10, Math.floor(Math.log10(value) + 1e-9));
  const below = (value) =>
    power(value) * Math.max(...factors.filter((factor) => factor <= value / power(value) + 1e-9));
  const above = (value) => power(value) * [...factors, 10].find((factor) => factor >= value / power(value) - 1e-9);
  return {
    type: 'logarithmic', min: below(least * 0.9), max: above(most * 1.02), title: axisTitle(title + ', logarithmic'),
    grid: {color: colours.grid},
    ticks: {
      autoSkip: false, maxRotation: 0,
      callback: (value) =>
        factors.includes(Math.round(value / power(value) * 100) / 100) ? value.toLocaleString('en-US') : null,
    },
  };
}

// Horizontal bars: a group for each run, a bar for each of bars: [label, colour, milliseconds of a run or null].
function bars(parent, name, title, shown, axis, list) {
  const all = list.flatMap(([, , value]) => shown.map(value)).filter((value) => value !== null);
  const [one, unit] = unitOf(all);
  const scaled = (value) => value === null ? null : value / one;
  plot(parent, name, title, 70 + shown.length * Math.max(30, 10 + 9 * list.length), {
    type: 'bar',
    data: {
      labels: shown.map((run) => prefills.length > 1 ? [run.policy, prefill(run)] : run.policy),
      datasets: list.map(([label, colour, value]) => ({
        label, data: shown.map((run) => scaled(value(run))), backgroundColor: colour, categoryPercentage: 0.82,
        barPercentage: 1,
      })),
    },
    options: {
      indexAxis: 'y',
      plugins: {
        legend: {display: true, position: 'top', align: 'end', labels: {boxWidth: 14}},
        tooltip: {callbacks: {label: (item) => `${item.dataset.label}: ${duration(item.parsed.x)} ${unit}`}},
      },
      scales: {
        x: axisOver(all.map(scaled), `${axis} (${unit})`),
        y: {grid: {display: false}, ticks: {autoSkip: false, font: {size: 12}}},
      },
    },
  }, list.map(([label, colour]) => ({label, colour, tolerance: 4})));
}

function latencyPlots() {
  const parent = byId('latency-plots');
  clear(parent);
  const load = choice('load-choice', loads);
  const shown = runs.filter((run) => run.load === load);
  const percentiles = (of) =>
    ['p50', 'p95', 'p99'].map((p, i) => [p, colours.percentiles[i], (run) => of(run).count ? of(run)[p] : null]);
  bars(parent, 'TTFT', 'Time to first token (TTFT)', shown, 'TTFT', percentiles((run) => run.latency.ttft_ms));
  bars(parent, 'TPOT', 'Time per output token of a request (TPOT)', shown, 'TPOT',
       percentiles((run) => run.latency.tpot_ms));
  bars(parent, 'ITL', 'Time between two tokens, over all tokens (ITL)', shown, 'ITL',
       percentiles((run) => run.itl_ms));
  const classes = shown.length ? shown[0].classes.map((one) => one.name) : [];
  if (classes.length > 1) {
    bars(parent, 'TTFT by class', 'TTFT by class of traffic, 99th percentile', shown, 'TTFT',
         classes.map((name, i) => [name, colours.classes[i % colours.classes.length],
           (run) => run.classes[i].ttft_ms.count ? run.classes[i].ttft_ms.p99 : null]));
  }
}

function loadPlots() {
  if (loads.length < 2) {
    byId('loads').remove();
    return;
  }
  const kinds = policies.flatMap((policy) => prefills.map((how) => ({policy, how})))
    .filter(({policy, how}) => runs.some((run) => run.policy === policy && prefill(run) === how));
  // Where there are real and simulated runs, `policy` says which: "paged, real". Simulated runs are thin lines.
  // Runs that differ in their tiers are all of one policy.
  const tiered = runs.some((run) => run.tier_set);
  const colourOf = (policy) => tiered ? colours.sequences[policies.indexOf(policy) % colours.sequences.length] :
      colours.policies[policy.split(', ')[0]] || '#000000';
  const thin = (policy) => policy.endsWith(', simulated') || policy.endsWith(', one shape');
  const dashed = (how) => prefills.indexOf(how) > 0;
  legend('load-legend', kinds.map(({policy, how}) =>
    [prefills.length > 1 ? `${policy}, ${how}` : policy, colourOf(policy), dashed(how) ? 'dashed' : 'solid']));
  const lines = (name, title, value, axisOf) => {
    const datasets = kinds.map(({policy, how}) => ({
      label: `${policy}, ${how}`, borderColor: colourOf(policy), backgroundColor: colourOf(policy),
      borderWidth: thin(policy) ? 1 : 2.5, borderDash: dashed(how) ? [6, 4] : [],
      pointStyle: ['circle', 'rect', 'triangle', 'rectRot'][policies.indexOf(policy) % 4],
      pointRadius: thin(policy) ? 2 : 4, data: runs.filter((run) => run.policy === policy && prefill(run) === how)
        .map((run) => ({x: run.load, y: value(run)})).sort((a, b) => a.x - b.x),
    }));
    plot(byId('load-plots'), name, title, 300, {
      type: 'line', data: {datasets},
      options: {
        scales: {
          x: {type: 'linear', title: axisTitle('load (× the arrivals of the scenario)'), grid: {color: colours.grid}},
          y: axisOf(datasets.flatMap((one) => one.data.map((point) => point.y))),
        },
      },
    }, policies.map((policy) => ({label: policy, colour: colourOf(policy), tolerance: 60})));
  };
  lines('throughput', 'Throughput', (run) => run.throughput.output_tokens_per_s, () => linearAxis('output tokens/s'));
  lines('goodput', 'Goodput: requests that kept the SLO', (run) => run.throughput.goodput_per_s,
        () => linearAxis('requests/s'));
  for (const [what, of] of [['TTFT', (run) => run.latency.ttft_ms.p95], ['TPOT', (run) => run.latency.tpot_ms.p95]]) {
    const [one, unit] = unitOf(runs.map(of));
    lines(`${what} against load`, `${what}, 95th percentile`, (run) => of(run) / one,
          (values) => axisOver(values, `${what} (${unit})`));
  }
}

// --- over time -----------------------------------------------------------------------------------------------------

// Runs of samples in which a total went up: [first, last] as times.
function rises(times, totals) {
  const found = [];
  for (let i = 1; totals && i < times.length; ++i) {
    if (totals[i] > totals[i - 1]) {
      found.push([times[i - 1], times[i]]);
    }
  }
  return found;
}

// Two strips above the plot: nothing was admitted, and something ran out of room, with a quarter of the pool free.
const strips = {
  id: 'strips',
  afterDraw(chart, args, options) {
    const {ctx, chartArea, scales} = chart;
    const rows = [[options.blocked, colours.blocked, 15], [options.outOfRoom, colours.outOfRoom, 7]];
    rows.forEach(([spans, colour, up]) => {
      ctx.fillStyle = colour;
      for (const [from, to] of spans) {
        const left = scales.x.getPixelForValue(from), right = scales.x.getPixelForValue(to);
        ctx.fillRect(left, chartArea.top - up, Math.max(1.5, right - left), 6);
      }
    });
  },
};

// The map of the pool: a column for each moment, from the bottom to the top of the pool, until the next moment.
const map = {
  id: 'map',
  beforeDatasetsDraw(chart, args, options) {
    const {ctx, chartArea, scales} = chart;
    const {times, owners, end, codes} = options;
    const names = Object.fromEntries(Object.entries(codes).map(([name, code]) => [code, name]));
    ctx.save();
    owners.forEach((column, i) => {
      const left = Math.round(scales.x.getPixelForValue(times[i]));
      const right = Math.round(scales.x.getPixelForValue(i + 1 < times.length ? times[i + 1] : end));
      const cell = chartArea.height / column.length;
      for (let from = 0, to; from < column.length; from = to) {
        for (to = from + 1; to < column.length && column[to] === column[from]; ++to) {}
        ctx.fillStyle = column[from] >= 0 ? colours.sequences[column[from] % colours.sequences.length] :
            colours.map[names[column[from]]];
        const top = Math.round(chartArea.bottom - to * cell);
        ctx.fillRect(left, top, Math.max(1, right - left), Math.round(chartArea.bottom - from * cell) - top);
      }
    });
    ctx.restore();
  },
};

// The gigabytes that a second reads or writes, over times that are at least a fortieth of the run apart.
function rates(run, column, bytes) {
  const {time_s: times} = run.timeline;
  const least = (times[times.length - 1] - times[0]) / 40;
  const points = [];
  for (let from = 0, to = 1; to < times.length; ++to) {
    if (times[to] - times[from] >= least) {
      points.push([times[to], (column[to] - column[from]) * bytes / (times[to] - times[from]) / 1e9]);
      from = to;
    }
  }
  return points;
}

// {held, rate}: the most gigabytes that a tier of these runs holds, and reads or writes in a second; or null.
function mostOfTiers(shown) {
  const bytes = results.pool.block_bytes;
  const tiered = shown.filter((run) => run.tiers.length > 0);
  if (tiered.length === 0) {
    return null;
  }
  const held = tiered.flatMap((run) => run.tiers.flatMap((tier) => tier.timeline.held));
  const rate = tiered.flatMap((run) => run.tiers.flatMap(({timeline}) =>
    [timeline.loaded, timeline.stored].flatMap((column) => rates(run, column, bytes).map(([, value]) => value))));
  return {held: Math.max(...held) * bytes / 1e9, rate: Math.max(...rate, 1e-9)};
}

// What the slower tiers of a run hold, and what is read from them and written to them.
function tierPlots(card, run, {length, unit, xAxis, yAxis, inTime, most}) {
  const bytes = results.pool.block_bytes, {time_s: times} = run.timeline;
  const colourOf = (i) => colours.tiers[i % colours.tiers.length];
  const options = (title, top, max) => ({
    interaction: {mode: 'nearest', intersect: false},
    plugins: {tooltip: {callbacks: {title: (items) => `${items[0].parsed.x.toFixed(2)} ${unit}`}}},
    scales: {x: xAxis(false), y: {...yAxis(title, max, colours.grid), ticks: {maxTicksLimit: 5}}},
  });
  const line = (label, colour, data, dash) => ({
    label, data, borderColor: colour, backgroundColor: colour, borderWidth: 1.5, borderDash: dash, pointRadius: 0,
    pointHitRadius: 4,
  });
  const series = run.tiers.map((tier, i) => ({label: tier.name, colour: colourOf(i), tolerance: 60}));
  plot(card, `tiers ${run.policy}`, '', 140, {
    type: 'line',
    data: {datasets: run.tiers.map((tier, i) => line(tier.name, colourOf(i),
        inTime(times, tier.timeline.held.map((held) => held * bytes / 1e9)), []))},
    options: options('held (GB)', true, most.held),
  }, series);
  const inPoints = (points) => points.map(([time, value]) => ({x: time / length, y: value}));
  plot(card, `tier traffic ${run.policy}`, '', 140, {
    type: 'line',
    data: {datasets: run.tiers.flatMap((tier, i) => [
      line(`${tier.name}, read`, colourOf(i), inPoints(rates(run, tier.timeline.loaded, bytes)), []),
      line(`${tier.name}, written`, colourOf(i), inPoints(rates(run, tier.timeline.stored, bytes)), [4, 3])])},
    options: options('GB/s', false, most.rate),
  }, series);
  const names = element('div', card, {className: 'legend'});
  run.tiers.forEach((tier, i) => {
    for (const [text, style] of [[`${tier.name}: held, read`, 'solid'], [`${tier.name}: written`, 'dashed']]) {
      const entry = element('span', names);
      element('i', entry, {className: 'line'}).style.borderTop = `3px ${style} ${colourOf(i)}`;
      entry.append(text);
    }
  });
}

function timePlots() {
  const parent = byId('time-plots');
  clear(parent);
  const load = choice('load-choice', loads), how = choice('prefill-choice', prefills);
  const shown = runs.filter((run) => run.load === load && prefill(run) === how);
  parent.classList.toggle('single', shown.length === 1);
  const {from_s: start, to_s: stop} = results.watched;
  const over = Math.max(...shown.map((run) => Math.max(run.seconds, ...run.timeline.time_s)));
  const end = stop === null ? over : Math.min(stop, over);
  const [unit, length] = stop !== null ? ['s', 1] : end > 4 * 3600 ? ['h', 3600] : end > 600 ? ['min', 60] : ['s', 1];
  const tiersShown = mostOfTiers(shown);
  const most = Math.max(1, ...shown.flatMap((run) => [...run.timeline.running, ...run.timeline.waiting]));
  const xAxis = (title) => ({
    type: 'linear', min: start / length, max: end / length,
    title: title ? axisTitle(`time (${unit})`) : {display: false},
    grid: {color: colours.grid}, ticks: {maxRotation: 0, includeBounds: false},
  });
  const yAxis = (title, max, color) => ({
    type: 'linear', min: 0, suggestedMax: max, title: axisTitle(title), grid: {color, z: 1},
    afterFit: (scale) => { scale.width = 62; },  // the plots of a policy stand one above the other
  });
  const inTime = (times, values) => times.map((time, i) => ({x: time / length, y: values[i]}));

  for (const run of shown) {
    const card = element('div', parent, {className: 'card'});
    element('h3', card, {textContent: run.policy});
    const t = run.timeline, pool = run.pool_tokens;
    const share = (value) => 100 * value / pool;
    // No sequence can use the slots behind the last whole block of the pool: they are added to the largest free run.
    const largest = t.free.map((free, i) => Math.min(free, t.largest_free_run[i]));
    const parts = [
      ['used', colours.used, t.used], ['reserved, not used', colours.wasted, t.wasted],
      ['cached', colours.cached, t.cached],
      ['free, elsewhere', colours.scattered, t.free.map((free, i) => free - largest[i])],
      ['largest free run', colours.run, largest]];
    const scaled = (spans) => spans.map(([from, to]) => [from / length, to / length]);
    plot(card, `memory ${run.policy}`, '', 250, {
      type: 'line',
      data: {
        datasets: parts.map(([label, colour, values], i) => ({
          label, data: inTime(t.time_s, values.map(share)), stack: 'pool', fill: i === 0 ? 'origin' : '-1',
          backgroundColor: colour, borderWidth: i === 3 ? 1.25 : 0, borderColor: colours.runLine, pointRadius: 0,
          pointHitRadius: 4,
        })),
      },
      options: {
        layout: {padding: {top: 18}},
        interaction: {mode: 'index', intersect: false},
        plugins: {
          strips: {
            blocked: scaled(rises(t.time_s, t.blocked_25_s)), outOfRoom: scaled(rises(t.time_s, t.out_of_room_25)),
          },
          tooltip: {callbacks: {
            title: (items) => `${items[0].parsed.x.toFixed(2)} ${unit}`,
            label: (item) => `${item.dataset.label}: ${grouped(parts[item.datasetIndex][2][item.dataIndex])} tokens`}},
        },
        scales: {x: xAxis(false), y: {...yAxis('share of the pool (%)', 100, colours.grid), max: 100, stacked: true}},
      },
      plugins: [strips],
    }, [...parts.map(([label, colour]) => ({label, colour, tolerance: 4})),
      {label: 'line', colour: colours.runLine, tolerance: 100}]);

    const counts = [['running', colours.running, t.running], ['waiting', colours.waiting, t.waiting]];
    plot(card, `queue ${run.policy}`, '', 140, {
      type: 'line',
      data: {
        datasets: counts.map(([label, colour, values]) => ({
          label, data: inTime(t.time_s, values), borderColor: colour, backgroundColor: colour, borderWidth: 1.5,
          stepped: true, pointRadius: 0, pointHitRadius: 4,
        })),
      },
      options: {
        interaction: {mode: 'index', intersect: false},
        plugins: {tooltip: {callbacks: {title: (items) => `${items[0].parsed.x.toFixed(2)} ${unit}`}}},
        scales: {
          x: xAxis(false), y: {...yAxis('sequences', most, colours.grid), ticks: {maxTicksLimit: 5, precision: 0}},
        },
      },
    }, counts.map(([label, colour]) => ({label, colour, tolerance: 60})));

    if (tiersShown) {
      tierPlots(card, run, {length, unit, xAxis, yAxis, inTime, most: tiersShown});
    }

    if (run.map && run.map.time_s.length > 0) {
      plot(card, `map ${run.policy}`, '', 270, {
        type: 'scatter',
        data: {datasets: []},
        options: {
          events: [],
          plugins: {map: {
            times: run.map.time_s.map((time) => time / length), owners: run.map.owners, codes: run.map.codes,
            end: Math.min(run.seconds, end) / length}},
          scales: {x: xAxis(true), y: {...yAxis('place in the pool (%)', 100, 'rgba(0, 0, 0, 0)'), max: 100}},
        },
        plugins: [map],
      }, [...Object.entries(colours.map).map(([label, colour]) => ({label, colour, tolerance: 2})),
        ...colours.sequences.map((colour, i) => ({label: `sequence ${i}`, colour, tolerance: 2}))]);
    }
  }
}

// --- legends and choices -------------------------------------------------------------------------------------------

// entries: [text, colour or colours, for a line its style]
function legend(id, entries) {
  for (const [text, colour, line] of entries) {
    const entry = element('span', byId(id));
    for (const one of [colour].flat()) {
      const mark = element('i', entry, {className: line ? 'line' : ''});
      if (line) {
        mark.style.borderTop = `3px ${line} ${one}`;
      } else {
        mark.style.background = one;
      }
    }
    entry.append(text);
  }
}

function legends() {
  legend('memory-legend', [
    ['used', colours.used], ['reserved, not used', colours.wasted], ['cached, can be evicted', colours.cached],
    ['free, not in the largest run', colours.scattered], ['largest free run', colours.run],
    ['nothing admitted, though 25 % is free', colours.blocked, 'solid'],
    ['a running sequence out of room, though 25 % is free', colours.outOfRoom, 'solid']]);
  legend('queue-legend', [['running', colours.running, 'solid'], ['waiting', colours.waiting, 'solid']]);
  legend('map-legend', [
    ['one sequence each (colours come again)', colours.sequences],
    ['several sequences', colours.map.shared], ['cached or pinned', colours.map.cached],
    ['reserved by a sequence, not used', colours.map.reserved], ['free', colours.map.free]]);
}

// The value chosen there, or the first, where there is nothing to choose.
function choice(id, values) {
  const select = byId(id).querySelector('select');
  return select ? values[select.selectedIndex] : values[0];
}

function choices(id, title, values, first, changed) {
  if (values.length < 2) {
    byId(id).remove();
    element('div', document.body, {id});
    return;
  }
  const label = element('label', byId(id), {textContent: title + ' '});
  const select = element('select', label);
  values.forEach((value) => element('option', select, {textContent: value}));
  select.selectedIndex = first;
  select.addEventListener('change', changed);
}

// --- what was drawn ------------------------------------------------------------------------------------------------

function near(data, at, rgb, tolerance) {
  return Math.abs(data[at] - rgb[0]) <= tolerance && Math.abs(data[at + 1] - rgb[1]) <= tolerance &&
      Math.abs(data[at + 2] - rgb[2]) <= tolerance && data[at + 3] > 127;
}

// Of each plot the area inside its axes in pixels, and how many pixels of it have the colour of each series.
function drawn() {
  return plots.map(({name, chart, series}) => {
    const {left, top, width, height} = chart.chartArea, ratio = chart.currentDevicePixelRatio;
    const box = [left, top, width, height].map((value) => Math.round(value * ratio));
    const {data} = chart.ctx.getImageData(...box);
    const pixels = {};
    for (const {label, colour, tolerance} of series) {
      const rgb = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
      let count = 0;
      for (let at = 0; at < data.length; at += 4) {
        count += near(data, at, rgb, tolerance) ? 1 : 0;
      }
      pixels[label] = count;
    }
    return {name, area: box[2] * box[3], pixels};
  });
}

/// The predictions of a cost model, fitted to measured steps, for requests that were then served.
function calibration() {
  const fit = results.calibration;
  if (!fit) {
    byId('calibration').remove();
    return;
  }
  byId('fit').textContent = `Fitted to ${fit.timings} kinds of steps: median error ${percent(fit.median_error, 1)}, ` +
      `largest ${percent(fit.largest_error, 1)}.`;
  const made = element('table', byId('calibration-table'));
  const header = element('tr', element('thead', made));
  const body = element('tbody', made);
  const kinds = Object.keys(fit.comparisons[0]).filter((key) => fit.comparisons[0][key]?.ratio !== undefined);
  for (const title of ['policy', 'prefill', 'load']) {
    element('th', header, {textContent: title, className: title === 'load' ? '' : 'word'});
  }
  for (const kind of kinds) {
    for (const title of [`${kind} predicted`, 'measured', 'ratio']) {
      element('th', header, {textContent: title});
    }
  }
  for (const one of fit.comparisons) {
    const row = element('tr', body);
    element('td', row, {textContent: one.policy, className: 'word'});
    element('td', row, {textContent: prefill(one), className: 'word'});
    element('td', row, {textContent: one.load.toString()});
    for (const kind of kinds) {
      for (const value of [one[kind].predicted, one[kind].measured, one[kind].ratio]) {
        element('td', row, {textContent: value < 100 ? value.toFixed(2) : grouped(value)});
      }
    }
  }
}

head();
tables();
calibration();
loadPlots();
choices('load-choice', 'Load, here and below', loads, Math.max(0, loads.indexOf(1)), () => {
  latencyPlots();
  timePlots();
});
choices('prefill-choice', 'Prefill', prefills, 0, timePlots);
legends();
latencyPlots();
timePlots();
window.addEventListener('beforeprint', () => plots.forEach((one) => one.chart.resize()));
window.addEventListener('afterprint', () => plots.forEach((one) => one.chart.resize()));
if (location.hash === '#drawn') {
  element('script', document.body, {type: 'application/json', id: 'drawn', textContent: JSON.stringify(drawn())});
}
