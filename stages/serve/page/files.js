const LARGE_BYTES = 2_000_000;
const LARGEST_SIDE = 1536; // far above what image encoders see

/** Call `take` with each picture that is chosen, dropped or pasted, and `refuse` with a sentence about other files. */
export function listenForFiles(input, take, refuse) {
  const all = async (files) => {
    for (const file of files) {
      const picture = await readable(file);
      if (picture) take(picture);
      else refuse(`${file.name} is not a picture that this browser can read.`);
    }
  };
  input.addEventListener("change", async () => {
    const files = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    await all(files);
  });
  document.addEventListener("paste", (event) => all([...event.clipboardData.files]));
  document.addEventListener("dragover", (event) => showDrop(event, true));
  document.addEventListener("dragleave", (event) => event.relatedTarget || showDrop(event, false));
  document.addEventListener("drop", (event) => {
    const files = [...event.dataTransfer.files];
    showDrop(event, false);
    return all(files);
  });
}

function showDrop(event, isOver) {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.toggle("dropping", isOver);
}

/** The file, smaller if it is a large photo; null if it is no picture. */
async function readable(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap || file.size < LARGE_BYTES) return bitmap && file;
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.ceil(bitmap.width * scale), Math.ceil(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the server does with transparent pictures
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new File([await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 })], file.name, { type: "image/jpeg" });
}
