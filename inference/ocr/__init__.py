"""OCR of files: rendering, preprocessing and Tesseract run in child processes."""
