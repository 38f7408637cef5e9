/* Extends the panels by new samples, unless they were redrawn meanwhile. */
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.stabilizer = Object.assign(window.dash_clientside.stabilizer || {}, {
  extendPanels: function (extension, shown, panels) {
    const nothing = window.dash_clientside.no_update;
    const isOfThis =
      extension &&
      shown &&
      extension.number === shown.number &&
      extension.shown.drawn_at === shown.drawn_at; // else it belongs to another drawing or run
    if (!isOfThis) {
      return panels.map(() => nothing).concat([nothing]);
    }
    return panels.map((panel) => extension.updates[panel] || nothing).concat([extension.shown]);
  },
});
