"""What the model card says, in two languages."""

ENGLISH = {
    "title": "English",
    "exported": "A Whisper speech recognizer, exported from `{base}`.",
    "from_scratch": "A Whisper speech recognizer, trained from random weights.",
    "fine_tuned": "A Whisper speech recognizer, fine-tuned from `{base}`.",
    "speaks": "Language: `{language}`; {millions} million parameters.",
    "results": "Results",
    "no_results": "Not measured.",
    "columns": "| | data (utterances) | WER [95 %] | WER, normalized [95 %] | CER [95 %] |",
    "before": "before training",
    "after": "this model",
    "difference": "difference",
    "points": "points",
    "guards": "Other speech, which had no part in the training (WER, normalized):",
    "guard_columns": "| speech (utterances) | before training | this model | difference |",
    "intervals": (
        "Greedy decoding at full context, the same utterances each time. Normalized: lower case, no "
        "punctuation, ñ and accents kept. In brackets, 95 % intervals of a bootstrap over utterances, paired for the "
        "difference: how far the figure would lie off with other utterances of the same kind."
    ),
    "training": "Training",
    "data": "data",
    "unknown": "amount unknown",
    "utterances": "utterances",
    "steps": "optimizer steps",
    "epochs": "epochs",
    "batch": "utterances per batch x accumulated batches, per device",
    "learning_rate": "learning rate (AdamW)",
    "weight_decay": "weight decay",
    "tail": "silence behind the speech: cells computed",
    "augmentation": "augmentation",
    "precision": "precision",
    "seed": "seed",
    "use": "Use",
    "limits": "Limits",
    "limit_window": "It hears {seconds} s at a time; longer recordings have to be cut.",
    "limit_invents": "Like every Whisper it may invent text in silence and noise, or repeat itself.",
    "limit_data": (
        "The figures hold for recordings like those of the test data. For other accents, rooms, microphones or topics, "
        "measure again."
    ),
    "limit_chosen": (
        "The best step was chosen on the test utterances themselves: on new ones, expect slightly more errors."
    ),
}

SPANISH = {
    "title": "Español",
    "exported": "Un reconocedor de voz Whisper, exportado de `{base}`.",
    "from_scratch": "Un reconocedor de voz Whisper, entrenado desde pesos aleatorios.",
    "fine_tuned": "Un reconocedor de voz Whisper, ajustado a partir de `{base}`.",
    "speaks": "Idioma: `{language}`; {millions} millones de parámetros.",
    "results": "Resultados",
    "no_results": "Sin medir.",
    "columns": "| | datos (frases) | WER [95 %] | WER normalizado [95 %] | CER [95 %] |",
    "before": "antes de entrenar",
    "after": "este modelo",
    "difference": "diferencia",
    "points": "puntos",
    "guards": "Otra habla, que no intervino en el entrenamiento (WER normalizado):",
    "guard_columns": "| habla (frases) | antes de entrenar | este modelo | diferencia |",
    "intervals": (
        "Decodificación voraz con el contexto completo, las mismas frases cada vez. Normalizado: minúsculas, sin "
        "puntuación, con ñ y tildes. Entre corchetes, intervalos del 95 % por bootstrap sobre las frases, pareado para "
        "la diferencia: cuánto podría variar la cifra con otras frases de la misma clase."
    ),
    "training": "Entrenamiento",
    "data": "datos",
    "unknown": "cantidad desconocida",
    "utterances": "frases",
    "steps": "pasos del optimizador",
    "epochs": "épocas",
    "batch": "frases por lote x lotes acumulados, por dispositivo",
    "learning_rate": "tasa de aprendizaje (AdamW)",
    "weight_decay": "decaimiento de pesos",
    "tail": "silencio tras la voz: celdas que se calculan",
    "augmentation": "aumento de datos",
    "precision": "precisión",
    "seed": "semilla",
    "use": "Uso",
    "limits": "Límites",
    "limit_window": "Oye {seconds} s cada vez; las grabaciones más largas hay que cortarlas.",
    "limit_invents": "Como todo Whisper, puede inventar texto en silencios y ruido, o repetirse.",
    "limit_data": (
        "Las cifras valen para grabaciones como las de los datos de prueba. Con otros acentos, salas, micrófonos o "
        "temas, hay que medir de nuevo."
    ),
    "limit_chosen": (
        "El mejor paso se eligió con las mismas frases de prueba: con frases nuevas habrá algo más de errores."
    ),
}
