// What test_browser.py runs beside the explorer's own script, whose text `source` is.
({
  // the widget before a model that is told its traits in some order, a frame each, and drawn twice
  render: async ([source, names, initial]) => {
    const module = await import('data:text/javascript,' + encodeURIComponent(source))
    const later = {
      image: await (await fetch(initial.image)).arrayBuffer().then(data => new DataView(data)),
      size: [64, 48], shape: [16, 16], names: ['a', 'b'], chosen: 'b', threshold: 0.25, pixel: [50, 10],
      truth: new DataView(new Uint8Array(256).fill(1, 100, 130).buffer),
      maps: {}, opacity: 0.5, show_truth: true,
    }
    for (const name of ['a', 'b']) {
      const values = Uint16Array.from({length: 256}, (_, i) => 4000 * (i % 16))
      later.maps[name] = {values: new DataView(values.buffer), low: 0, high: 1, title: name, start: 0.5}
    }
    const empty = new DataView(new ArrayBuffer(0)), listeners = {}
    const state = {
      image: empty, size: [1, 1], shape: [1, 1], names: [], chosen: '', threshold: 0, pixel: [0, 0],
      truth: empty, maps: {}, opacity: 1, show_truth: false,
      palette: new DataView(Uint8Array.from({length: 768}, (_, i) => i / 3).buffer),
      colours: {truth: 'cyan', decision: 'white', picked: 'lime'},
    }
    const model = {
      get: name => state[name],
      set: (name, value) => { state[name] = value; listeners[`change:${name}`]?.forEach(call => call()) },
      save_changes: () => {},
      on: (event, call) => (listeners[event] ??= new Set()).add(call),
      off: (event, call) => listeners[event].delete(call),
    }
    const frames = () => new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))
    const el = document.body.appendChild(document.createElement('div'))
    el.style.width = '400px'
    const close = module.default.render({model, el})
    for (const name of names) { model.set(name, later[name]); await frames() }
    await new Promise(go => setTimeout(go, 100))  // the image is decoded
    await frames()
    const seen = view => [...view.querySelectorAll('canvas')].map(canvas => canvas.toDataURL()).concat(
      view.querySelector('.dmdd-values').innerText, view.querySelector('output').innerText)
    const first = seen(el), again = document.body.appendChild(el.cloneNode(false))
    close()
    const open = Object.values(listeners).reduce((sum, calls) => sum + calls.size, 0)
    el.remove()
    module.default.render({model, el: again})
    await new Promise(go => setTimeout(go, 100))
    const second = seen(again)
    again.remove()
    return [first, second, open]
  },
  contour: async ([source, raw, shape, level]) => {
    const module = await import('data:text/javascript,' + encodeURIComponent(source))
    const bytes = Uint8Array.from([0, ...raw])  // at an odd offset of its buffer
    const values = module.decode(new DataView(bytes.buffer, 1))
    return [[...values], module.contour(values, shape, level)]
  },
})
