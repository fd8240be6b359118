// The token in the address is exchanged for a cookie by a post of this page: following a link does nothing by itself,
// and the cookie never travels with a request from another site.
const button = document.getElementById("join");
const problem = document.getElementById("problem");

button.addEventListener("click", async () => {
  button.disabled = true;
  problem.hidden = true;
  try {
    const response = await fetch("/api/join", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token: decodeURIComponent(location.pathname.split("/").pop()) }),
    });
    const result = await response.json();
    if (!response.ok) throw new Error(result.error);
    location.replace(result.to);
  } catch (error) {
    problem.textContent = error instanceof TypeError ? "No connection to the server. Try again." : error.message;
    problem.hidden = false;
    button.disabled = false;
  }
});
