"""The colours and fonts of the page, as a theme of Gradio."""

import gradio as gr

THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="zinc",
    radius_size="lg",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_label_border_width="0px",
    block_label_border_width_dark="0px",
    block_label_background_fill="rgb(255 255 255 / 0.85)",
    block_label_background_fill_dark="rgb(24 24 27 / 0.85)",
    block_label_margin="8px",
    block_label_radius="*radius_md",
    block_title_text_weight="600",
    block_info_text_color="*body_text_color_subdued",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    slider_color="*primary_600",
)
