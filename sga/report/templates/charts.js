// Draws the charts of a page; the buttons of a figure's legend select settings in all of its charts.
for (const figure of document.querySelectorAll("figure")) {
  const options = {ast: true, actions: false, renderer: "svg", tooltip: {disableDefaultStyle: true}};
  const drawn = [...figure.querySelectorAll(".plot")].map((place) =>
    vegaEmbed(place, JSON.parse(place.nextElementSibling.textContent), options));
  const buttons = [...figure.querySelectorAll(".legend button")];
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  for (const button of buttons) {
    button.addEventListener("click", async () => {
      button.setAttribute("aria-pressed", !pressed(button));
      const picked = buttons.filter(pressed).map((one) =>
        ({unit: "", fields: [{type: "E", field: "setting"}], values: [one.dataset.setting]}));
      for (const {view} of await Promise.all(drawn)) view.data("picked_store", picked).runAsync();
    });
  }
}
