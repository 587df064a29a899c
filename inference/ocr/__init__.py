"""OCR of files; rendering, preprocessing and Tesseract run in worker processes of their own."""
